"""Run stages in copies of a folder, each time killed one step later than before; for test_kill.py.

A step is what changes a file under a stage's names: opening a temporary file to write, renaming,
removing. Packages are imported once and each run is a fork, which saves seconds a run.

    python killing.py TEMPLATE FOLDER STAGE…   ->  FOLDER/STAGE/0, 1, …; prints how each run ended
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import tiny_stages

# What the stages import, so that no fork has to.

FULL = 200  # bytes that a file may have in the run that dies while it writes


def die_at(step: int) -> None:
    """Kill this process before its `step`-th step; at 0: in the midst of a write."""
    if step == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))
        return
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove") or (event == "open" and is_written(*arguments)):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def is_written(path: Any, _mode: Any, flags: int) -> bool:
    return ".tmp" in str(path) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def run(folder: Path, stage: str, step: int) -> int:
    """Signal that ended the stage, or minus its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_at(step)
            changes = json.loads((folder / "changes.json").read_text()).get(stage, {})
            options = tiny_stages.between(stage, "new", "out") | changes
            status = tiny_stages.run_stage(folder, stage, **options).status
        finally:
            os._exit(status)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    template, folder = Path(sys.argv[1]), Path(sys.argv[2])
    ended: dict[str, list[int]] = {}
    for stage in sys.argv[3:]:
        ends = ended[stage] = []
        while not ends or ends[-1] > 0:
            step = folder / stage / str(len(ends))
            shutil.copytree(template, step, symlinks=True)
            ends.append(run(step, stage, len(ends)))
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
