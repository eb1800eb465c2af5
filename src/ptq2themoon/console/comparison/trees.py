"""The results that `compare` is given: a folder, or what a git revision holds of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ptq2themoon.safety.sidecars import SIDECAR
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError


@dataclass(frozen=True)
class Tree:
    """One side of a comparison.

    Attributes:
        name: as the user gave it.
        root: the folder that holds `results`, and `recipes` where they are there.
        heavy: whether what DVC keeps, results/models, is there.
    """

    name: str
    root: Path
    heavy: bool

    def found(self, pattern: str) -> list[str]:
        """Files of the results that match, relative to `root`, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))

    def files(self) -> set[str]:
        """All files of the results, sidecars and hidden ones apart, relative to `root`."""
        paths = (self.root / layout.RESULTS).rglob("*")
        names = [path for path in paths if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(self.root).as_posix() for path in names if not path.name.endswith(SIDECAR)}


@contextmanager
def opened(name: str) -> Iterator[Tree]:
    """The tree that a word of the command line means.

    Args:
        name: a folder with `results` in it, such a folder of results itself, or a revision of the
            repository in the working directory.

    Raises:
        UserError: it is neither, or holds no results.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(name)
        if not folder.is_dir():
            _extract(name, Path(scratch))
            root = Path(scratch)
        elif (folder / layout.RESULTS).is_dir():
            root = folder
        else:  # the results themselves, which patterns want under their name
            root = Path(scratch)
            (root / layout.RESULTS).symlink_to(folder.resolve(), target_is_directory=True)
            if (folder.resolve().parent / layout.RECIPES).is_dir():
                (root / layout.RECIPES).symlink_to(folder.resolve().parent / layout.RECIPES)
        if not any(root.glob(f"{layout.RESULTS}/*/**/*metrics.json")) and not any(
            root.glob(f"{layout.RESULTS}/*/leaderboard/*/*.json")
        ):
            raise UserError(
                f"{name}: holds no results; give a folder in which `snakemake` ran, or its results"
            )
        yield Tree(name, root, any(root.glob(f"{layout.RESULTS}/models/**/qparams.json")))


def _extract(revision: str, folder: Path) -> None:
    """Write results and recipes as of a revision into a folder."""
    top = _git(["rev-parse", "--show-toplevel"], Path.cwd())
    commit = top and _git(
        ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"], Path.cwd()
    )
    if not (top and commit):
        raise UserError(f"{revision}: neither a folder nor a revision of a git repository here")
    place, sha = Path(top.decode().strip()), commit.decode().strip()
    wanted = [layout.RESULTS, layout.RECIPES]
    there = (_git(["ls-tree", "-d", "--name-only", sha, *wanted], place) or b"").decode().split()
    if layout.RESULTS not in there:
        raise UserError(f"{revision}: this revision has no folder {layout.RESULTS}")
    packed = _git(["archive", "--format=tar", sha, *there], place)
    if packed is None:
        raise UserError(f"{revision}: git could not read {layout.RESULTS} of this revision")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def _git(words: Sequence[str], folder: Path) -> bytes | None:
    """What git prints; None where there is no git or it refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
