"""Snakemake, called on this project's Snakefile in a folder of the user's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ptq2themoon.console.running_jobs import waited_for
from ptq2themoon.vocabulary.elsewhere import bring
from ptq2themoon.vocabulary.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def prepare(folder: Path, params: str) -> None:
    """Write params.yaml into a folder, and copy the recipes that are not there yet."""
    if not (ROOT / "Snakefile").is_file():
        raise UserError(f"{ROOT}: no Snakefile; install the package from its repository, with `make env`")
    if folder.resolve() == ROOT:
        raise UserError(f"{folder}: is the repository, whose own results lie there; give another --work")
    folder.mkdir(parents=True, exist_ok=True)
    bring(ROOT, folder)
    (folder / "params.yaml").write_text(params, encoding="utf-8")


def command(folder: Path, words: Sequence[str]) -> list[str]:
    """The command that runs Snakemake in a folder, as a user may type it too."""
    return ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *words]


def run(folder: Path, words: Sequence[str], quiet: bool = True) -> None:
    """Run Snakemake, and tell on stderr how far its jobs are.

    Raises:
        UserError: a job failed; Snakemake's own lines say which and why.
    """
    more = ["--quiet", "host", "reason"] if quiet else []
    with subprocess.Popen([sys.executable, "-m", *command(folder, [*words, *more])]) as process:
        status = waited_for(process, folder, partial(print, file=sys.stderr, flush=True))
    if status:
        raise UserError(f"Snakemake ended with status {status}; its lines above say why")


def tool(name: str, folder: Path) -> int:
    """The exit status of one of the repository's tools, run in a folder."""
    script = ROOT / "workflow/scripts/tools" / f"{name}.py"
    return subprocess.run([sys.executable, str(script)], cwd=folder, check=False).returncode
