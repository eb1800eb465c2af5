"""Trees as in git, in which commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "src", "recipes", "profiles", "environment.yml")


def clone(folder: Path) -> Path:
    """Copy to `folder` what a run needs."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


def environment(folder: Path, **changes: str | None) -> dict[str, str]:
    """What a command in a clone sees; None takes a variable away."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {**os.environ, "PYTHONPATH": str(folder / "src"), "PATH": path, "OMP_NUM_THREADS": "1", **changes}
    return {name: value for name, value in given.items() if value is not None}


def run(folder: Path, *command: str, status: int = 0, env: dict[str, str] | None = None, **more: Any) -> str:
    """What a command says, run in a clone; fails unless it exits with `status`.

    Args:
        more: options of `subprocess.run`, such as the user.
    """
    env = env or environment(folder)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, **more)
    said = done.stdout + done.stderr
    assert done.returncode == status, said[-4000:]
    return said
