"""A folder outside the repository in which the workflow runs: what it needs there besides parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

from ptq2themoon.vocabulary.layout import RECIPES

BROUGHT = (f"{RECIPES}/*.yaml", "resources/study/*.csv", "resources/published/*.csv")


def bring(repository: Path, folder: Path) -> None:
    """Copy the repository's recipes and published figures that a folder lacks; its own stay as they are."""
    for source in sorted(path for pattern in BROUGHT for path in repository.glob(pattern)):
        copy = folder / source.relative_to(repository)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
