"""Trees as in git, in which commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ptq2themoon.vocabulary.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "src", "recipes", "profiles", "environment.yml")


def clone(folder: Path) -> Path:
    """Copy to `folder` what a run needs."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


def ready(folder: Path, params: str) -> Path:
    """A clone that can be run with a parameter file of this text, on the embedded images."""
    folder.mkdir()
    (folder / "resources").symlink_to(ROOT / "resources")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    return clone(folder)


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


def started(folder: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Snakemake, begun in a clone; what it says is one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *options], cwd=folder, env=env or environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What a run said, once it has ended well.

    Raises:
        UserError: it did not; its last lines.
    """
    said, _ = process.communicate()
    if process.returncode:
        raise UserError(f"Snakemake ended with status {process.returncode}:\n{said[-3000:]}")
    return said
