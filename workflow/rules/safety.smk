# What is looked at before jobs start: other runs, results that are no longer whole, times, folders.
from types import SimpleNamespace

import snakemake.exceptions
from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence
from snakemake_interface_executor_plugins.settings import ExecMode

from ptq2themoon.safety import one_run, run_folders, recorded
from ptq2themoon.vocabulary.errors import printable

HELD = []  # the lock on this folder, until this process ends


def tell(line):
    print(printable(line), file=sys.stderr)


def refuse_second_run():
    """Stands for Snakemake's exception of a locked folder, whose text has several lines."""
    known(one_run.refuse)


def doubt_results():
    """Have what is not as its sidecar says made again, as if it had been interrupted."""
    doubtful = list(recorded.doubts(Path(layout.RESULTS)))
    for line in dict.fromkeys(f"{doubt.file}: {doubt.what}" for doubt in doubtful):
        tell(f"{line}; what was made with it, and is needed, is made again")
    again = [IOFile(str(path)) for doubt in doubtful for path in doubt.again]
    if again:
        FilePersistence().started(SimpleNamespace(output=again))


def look_before_jobs(dag):
    """What would waste the work of jobs ends the run here, in a line for each thing."""
    jobs = list(dag.needrun_jobs())
    made = [Path(path) for job in jobs for path in (*job.output, *job.log, job.benchmark) if path]
    HELD.append(known(one_run.take_folder))
    if workflow.local_exec:
        one_run.started_by_this()
    known(lambda: run_folders.check_writable(made))
    read = {Path(path): None for job in jobs for path in job.input}
    for path in known(lambda: run_folders.set_right(read, Path(layout.RESULTS))):
        tell(f"{path}: its time was in the future; it has the time of now")


if workflow.exec_mode == ExecMode.DEFAULT:  # not within a job
    snakemake.exceptions.LockException = refuse_second_run
    if one_run.remove_stale_locks():
        tell("The last run here was killed; this one goes on with what it made.")
    doubt_results()
