"""Snakemake, called on this project's Snakefile in a folder of the user's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import RECIPES

ROOT = Path(__file__).resolve().parents[3]


def prepare(folder: Path, params: str) -> None:
    """Write params.yaml into a folder, and copy the recipes that are not there yet."""
    if not (ROOT / "Snakefile").is_file():
        raise UserError(f"{ROOT}: no Snakefile; install the package from its repository, with `make env`")
    if folder.resolve() == ROOT:
        raise UserError(f"{folder}: is the repository, whose own results lie there; give another --work")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPES).mkdir(exist_ok=True)
    for recipe in sorted((ROOT / RECIPES).glob("*.yaml")):
        if not (folder / RECIPES / recipe.name).exists():
            shutil.copy(recipe, folder / RECIPES)
    (folder / "params.yaml").write_text(params, encoding="utf-8")


def command(folder: Path, words: Sequence[str]) -> list[str]:
    """The command that runs Snakemake in a folder, as a user may type it too."""
    return ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *words]


def run(folder: Path, words: Sequence[str], quiet: bool = True) -> None:
    """Run Snakemake.

    Raises:
        UserError: a job failed; Snakemake's own lines say which and why.
    """
    more = ["--quiet", "host", "reason"] if quiet else []
    done = subprocess.run([sys.executable, "-m", *command(folder, [*words, *more])], check=False)
    if done.returncode:
        raise UserError(f"Snakemake ended with status {done.returncode}; its lines above say why")


def tool(name: str, folder: Path) -> int:
    """The exit status of one of the repository's tools, run in a folder."""
    script = ROOT / "workflow/scripts/tools" / f"{name}.py"
    return subprocess.run([sys.executable, str(script)], cwd=folder, check=False).returncode
