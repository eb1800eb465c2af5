"""Committed results, and the pages that quote them, as one snapshot.

A page quotes numbers of the processor on which the results were made. `make run` on another processor writes
other last digits over `results/`, and the page is no less right. So there are two cases:

- `results/` is as in the last commit: everything is read from the working tree. A page that is being edited
  is held to the tables before it is committed.
- a run has written other results (sidecars apart: they hold the wall time): everything is read as of the last
  commit, pages too. New results and the page that quotes them are compared once they are committed.

An archive without git has its files only, and they are read.
"""

from __future__ import annotations

import subprocess
from fnmatch import fnmatchcase
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


class Snapshot:
    """The files of a project's folder, the last commit's where a run has written over its results.

    Attributes:
        tracked: names that git knows; None where `root` is not the top of a git checkout with a commit.
        rewritten: whether a tracked file of results/, sidecars apart, differs from the last commit.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tracked: list[str] | None = None
        self.rewritten = False
        top = self._git("rev-parse", "--show-prefix", "HEAD")  # no prefix: `root` lies in no other project
        if top is None or not top.startswith(b"\n"):
            return
        results = self._git("diff", "--name-only", "HEAD", "--", "results", ":!*.sidecar.json")
        self.rewritten = bool(results)
        command = ("ls-tree", "-r", "--name-only", "-z", "HEAD") if self.rewritten else ("ls-files", "-z")
        self.tracked = (self._git(*command) or b"").decode().split("\0")

    def _git(self, *words: str) -> bytes | None:
        """What git prints; None where there is no git or it refuses."""
        try:
            done = subprocess.run(["git", *words], cwd=self.root, capture_output=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    def read(self, name: str) -> bytes:
        """Content of a file; `name` is relative to the project's folder, with slashes."""
        if not self.rewritten:
            return (self.root / name).read_bytes()
        content = self._git("show", f"HEAD:{name}")
        if content is None:
            raise FileNotFoundError(f"{name}: not in the last commit")
        return content

    def names(self, pattern: str) -> list[str]:
        """Names of the files that match, sorted; a `*` matches within one folder's name.

        What a user's own run has added to results/ is not among them, where git can tell.
        """
        if self.tracked is None:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        parts = pattern.split("/")
        return sorted(name for name in self.tracked if _matches(name.split("/"), parts))


def _matches(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))


@cache
def _project() -> Snapshot:
    return Snapshot(ROOT)


@cache
def read(name: str) -> bytes:
    """Content of a file of this project."""
    return _project().read(name)


def text(name: str) -> str:
    return read(name).decode("utf-8")


def table(name: str, **options: Any) -> pd.DataFrame:
    """A CSV file; `options` go to pandas."""
    return pd.read_csv(BytesIO(read(name)), **options)


def names(pattern: str) -> list[str]:
    """Files of this project that match a pattern such as `results/*/study/*.png`."""
    return _project().names(pattern)
