"""Compare a run here with runs through a Slurm of two nodes, a job cancelled and a node drained."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from clones import ROOT, ended, ready, started
from finished_run import differing

from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import UserError

COLUMNS = ("run", "jobs", "slurm_jobs", "cancelled", "drained", "seconds", "differing_files")
ALONE = ("--max-threads", "1")  # sums over several threads have other last bits
LOCAL = ("--cores", "2")
# Of a Slurm without accounting; statuses are asked for as often as so short jobs need.
SLURM = (
    "--profile", "profiles/slurm", "--default-resources", "slurm_partition=main", "--slurm-no-account",
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1",
    "--seconds-between-status-checks", "1", "--latency-wait", "10",
)  # fmt: skip


def check(
    params: Path = Path("params.yaml"),
    weights: Path | None = None,
    quick: bool = False,
    out: Path = Path("results/benchmarks/slurm.csv"),
) -> None:
    """Compare a run here with runs through Slurm, each from scratch with one thread per job.

    Args:
        params: the parameter file.
        weights: a folder that it names, besides those of the repository.
        quick: leave out the run that nothing disturbs.
        out: CSV, one row per run.
    """
    names = ("local", "slurm, disturbed") if quick else ("local", "slurm", "slurm, disturbed")
    text, rows = params.read_text(encoding="utf-8"), []
    with (
        Stage("slurm", inputs=[params], outputs=[out], parameters={}) as stage,
        TemporaryDirectory(prefix="slurm-") as place,  # short: a socket's path has few letters
    ):
        folder = Path(place)
        for name in names:
            tree = ready(folder / name.replace(", ", "_"), text)
            if weights is not None:
                shutil.copytree(weights, tree / weights.name)
            row = {"run": name, **(local(tree) if name == "local" else on_slurm(tree, disturbed="," in name))}
            row["differing_files"] = "" if name == "local" else len(differing(folder / "local", tree))
            rows.append(row)
            print(row, flush=True)
        write_csv(stage.temporary(out), COLUMNS, rows)


def local(tree: Path) -> dict[str, Any]:
    """A run on this machine."""
    start = time.monotonic()
    said = ended(started(tree, *LOCAL, *ALONE))
    return {"jobs": jobs_in(said), "slurm_jobs": 0, "seconds": round(time.monotonic() - start)}


def on_slurm(tree: Path, disturbed: bool) -> dict[str, Any]:
    """Run the workflow through two nodes; a disturbed run loses a job, and then a node."""
    with nodes(tree.with_name(f"{tree.name}.d")) as daemons:
        start = time.monotonic()
        process = started(tree, *SLURM, *ALONE)
        try:
            done = disturb(process) if disturbed else {}
            said = ended(process)
        finally:
            process.kill()
        seconds = round(time.monotonic() - start)
        history = (daemons / "jobcomp.txt").read_text()
    states = re.findall(r"JobState=(\w+)", history)
    if disturbed and "CANCELLED" not in states:
        raise UserError(f"{tree.name}: no job was cancelled; jobs ended as {sorted(set(states))}")
    return {"jobs": jobs_in(said), "slurm_jobs": len(states), "seconds": seconds, **done}


@contextlib.contextmanager
def nodes(folder: Path) -> Iterator[Path]:
    """A Slurm of two nodes that runs here."""
    script, variables = str(ROOT / "tools/slurm.sh"), {**os.environ, "SLURM_TEST_DIR": str(folder)}
    for name, value in (("MEM_MB", "8000"), ("CPUS", "4")):  # a group asks for the sum of its jobs'
        variables.setdefault(f"SLURM_TEST_{name}", value)
    begun = subprocess.run([script, "start", "2"], env=variables, capture_output=True, text=True, check=False)
    try:
        if begun.returncode:
            raise UserError(begun.stderr.strip().splitlines()[-1])
        yield folder
    finally:
        subprocess.run([script, "stop"], env=variables, check=False)
        time.sleep(2)  # the daemons' ports are free again


def disturb(process: subprocess.Popen[str]) -> dict[str, str]:
    """Cancel a running calibration, then drain the second node while a job runs on it."""
    done: dict[str, str] = {}
    while process.poll() is None and len(done) < 2:
        listed = asked("squeue", "--noheader", "--states=RUNNING", "--format=%i %N %k").splitlines()
        running = [line.split(" ", 2) for line in listed]
        calibrations = [number for number, _, comment in running if "calibrate" in comment]
        if "cancelled" not in done and calibrations:
            asked("scancel", calibrations[0])
            done["cancelled"] = "calibrate"
        elif "cancelled" in done and any(node == "n2" for _, node, _ in running):
            asked("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
            done["drained"] = "n2"
        time.sleep(0.3)
    if len(done) < 2:
        ended(process)  # raises what it said, where it failed
        raise UserError(f"the run ended before a job was cancelled and a node drained; done: {list(done)}")
    return done


def asked(*command: str) -> str:
    """What a command of Slurm says."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs_in(said: str) -> int:
    """Snakemake's own count, but for the rule that only names targets."""
    found = re.findall(r"^total +(\d+)$", said, re.MULTILINE)
    return int(found[0]) - 1


if __name__ == "__main__":
    run(lambda: tyro.cli(check))
