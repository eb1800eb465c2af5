"""The results that `compare` is given: a folder, or what a git revision holds of them."""

from __future__ import annotations

import io
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ptq2themoon.safety.sidecars import SIDECAR
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError

# Where a folder has results: of a run, the committed ones of a clone without a run, or it is such itself.
PLACES = (layout.RESULTS, layout.EXAMPLE, ".", Path(layout.EXAMPLE).name)


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
        """Files of the results that match, relative to `root`, sorted; no pipe, and none of an example."""
        paths = (path for path in self.root.glob(pattern) if path.is_file())
        names = (path.relative_to(self.root).as_posix() for path in paths)
        return sorted(name for name in names if not name.startswith(f"{layout.EXAMPLE}/"))

    @cached_property
    def files(self) -> frozenset[str]:
        """All files of the results, sidecars and hidden ones apart, relative to `root`."""
        return frozenset(
            name
            for name in self.found(f"{layout.RESULTS}/**/*")
            if not name.rpartition("/")[2].startswith(".") and not name.endswith(SIDECAR)
        )

    @property
    def whole(self) -> bool:
        """Whether it holds more than the committed example of its results would."""
        return any(not kept(name) for name in self.files)


def kept(name: str) -> bool:
    """Whether an example has the file; `name` as `Tree.files` gives it."""
    return layout.in_example(name.removeprefix(f"{layout.RESULTS}/"))


@contextmanager
def opened(name: str) -> Iterator[Tree]:
    """The tree that a word of the command line means.

    Args:
        name: a folder in which a run wrote `results`, or with the committed example, or such results
            themselves; or a revision of the repository in the working directory.

    Raises:
        UserError: it is neither, or holds no results.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root, folder = Path(scratch, "tree"), Path(name)
        root.mkdir()
        if not folder.is_dir():
            folder = Path(scratch, "revision")
            _extract(name, folder)
        results = next(filter(_holds_results, (folder / place for place in PLACES)), None)
        if results is None:
            raise UserError(
                f"{name}: holds no results; give a folder in which `snakemake` ran, or its results"
            )
        (root / layout.RESULTS).symlink_to(results.resolve(), target_is_directory=True)
        for above in (folder, folder / "..", folder / "../.."):
            if (above / layout.RECIPES).is_dir():
                (root / layout.RECIPES).symlink_to((above / layout.RECIPES).resolve())
                break
        yield Tree(name, root, any(results.glob("models/**/qparams.json")))


def _holds_results(folder: Path) -> bool:
    """Whether a model's results, or rows of its leaderboard, lie in a folder."""
    return any(
        any(folder.glob(f"*/{files}"))
        for files in ("*metrics.json", "*/*metrics.json", "leaderboard/*/*.json")
    )


def _extract(revision: str, folder: Path) -> None:
    """Write the committed results and the recipes as of a revision into a folder."""
    top = _git(["rev-parse", "--show-toplevel"], Path.cwd())
    commit = top and _git(
        ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"], Path.cwd()
    )
    if not (top and commit):
        raise UserError(f"{revision}: neither a folder nor a revision of a git repository here")
    place, sha = Path(top.decode().strip()), commit.decode().strip()
    there = _git(["ls-tree", "-d", "--name-only", sha, layout.RESULTS, layout.RECIPES], place) or b""
    if layout.RESULTS not in there.decode().split():
        raise UserError(f"{revision}: this revision has no folder {layout.RESULTS}")
    packed = _git(["archive", "--format=zip", "-0", sha, *there.decode().split()], place)
    if packed is None:
        raise UserError(f"{revision}: git could not read the results of this revision")
    # A zip, since Python before 3.11.4 has no filter for a tar: it would follow links out of the folder.
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)


def _git(words: Sequence[str], folder: Path) -> bytes | None:
    """What git prints; None where there is no git or it refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
