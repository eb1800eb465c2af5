"""One finished run of the tiny workflow, which tests copy and then break; and what makes two runs equal."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from clones import run
from tiny_run import PARAMS, snakemake, tiny_clone

SMALL = {**PARAMS, "deploy": {"modes": ["fast"]}}


def fresh(folder: Path) -> Path:
    """A clone in which nothing was run yet."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_clone(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


@cache
def finished(base: Path) -> Path:
    """A clone below `base` with all results; not to be changed, for it is made once."""
    folder = fresh(base / "finished")
    snakemake(folder)
    return folder


def copy(finished: Path, folder: Path) -> Path:
    """Another clone with the same results, times and records of Snakemake."""
    return shutil.copytree(finished, folder, symlinks=True)


def results(folder: Path) -> dict[str, Any]:
    """Content of every result by its path; of sidecars all but the time that a stage took."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "results").resolve().rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            content: Any = path.read_bytes()
            if path.name.endswith(".sidecar.json"):
                content = {**json.loads(content), "wall_time_s": None}
            found[path.relative_to((folder / "results").resolve()).as_posix()] = content
    return found


def differing(one: Path, other: Path) -> list[str]:
    """Names of results that are not equal in two clones."""
    first, second = results(one), results(other)
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def verify(folder: Path, status: int = 0, **more: Any) -> str:
    return run(folder, "python", "workflow/scripts/tools/verify.py", status=status, **more)
