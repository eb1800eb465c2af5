"""Where a run writes: folders that take files, looked at before anything is worked on."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from ptq2themoon.safety.durable import trouble
from ptq2themoon.vocabulary.errors import UserError

RECORDS = ".snakemake"  # where Snakemake keeps its own files, in the folder in which it runs


def prepare_places(arguments: Sequence[str] | None = None) -> None:
    """End the process with a line where the folder of a run takes no file; who has no cache gets one there.

    Snakemake writes there before the Snakefile speaks, and its profile calls this first.

    Args:
        arguments: of Snakemake; those of the process by default.
    """
    folder = directory(sys.argv[1:] if arguments is None else arguments)
    try:
        check_room(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not (caches.is_absolute() and takes_files(caches / "snakemake")):
        os.environ["XDG_CACHE_HOME"] = str((folder / RECORDS / "cache").resolve())
        os.environ.setdefault("MPLCONFIGDIR", os.environ["XDG_CACHE_HOME"])


def directory(arguments: Sequence[str]) -> Path:
    """What `--directory` names, or the current folder."""
    found = Path()
    for word, after in zip(arguments, [*arguments, ""][1:], strict=True):
        if word in ("--directory", "-d"):
            found = Path(after)
        elif word.startswith("--directory="):
            found = Path(word.partition("=")[2])
    return found


def standing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there; a link that leads nowhere is there."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def takes_files(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself can."""
    try:
        with tempfile.TemporaryFile(dir=standing(folder)):
            return True
    except OSError:
        return False


def check_room(folder: Path) -> None:
    """Write a little and take it away again.

    Raises:
        UserError: the disk is full or read-only, or the folder is not this user's to write to.
    """
    place = standing(folder / RECORDS)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what, remedy = trouble(error) or (error.strerror or str(error), "give a folder that takes files")
        where = place.resolve() if place.is_dir() else place
        raise UserError(
            f"{where}: no run can write here: {what}; {remedy}, or run in another --directory"
        ) from None


def check_writable(paths: Iterable[Path]) -> None:
    """Look whether each file can be made, or written over.

    Raises:
        UserError: it cannot; one line for each folder or file.
    """
    found: dict[Path, str] = {}
    for path in paths:
        place = standing(path.parent)
        if place in found:
            continue
        found[place] = ""
        if not place.is_dir():
            found[place] = "is no folder, or a link that leads nowhere; put a folder there"
        elif not takes_files(place):
            found[place] = f"takes no file from this user, but {path} is to be made; {_how(place)}"
    if lines := [f"{place}: {what}" for place, what in found.items() if what]:
        raise UserError("\n".join(lines))


def _how(place: Path) -> str:
    return f"`chmod u+rwx {place}`, or run in another --directory"


def set_right(paths: Iterable[Path], results: Path) -> list[Path]:
    """Give results whose time lies in the future the time of now; other files are their owner's.

    A job is no success for Snakemake when its output is older than its input, and what it made is removed.

    Args:
        paths: that jobs will read.
        results: the folder of results.

    Returns:
        What was given the time of now.

    Raises:
        UserError: names the files that are not in `results`.
    """
    now = time.time()
    late = {path: path.stat().st_mtime for path in paths if path.is_file() and path.stat().st_mtime > now}
    ours = [path for path in late if results in path.parents]
    others = [path for path in late if path not in ours]
    if others:
        when = datetime.fromtimestamp(late[others[0]]).strftime("%Y-%m-%d %H:%M:%S")
        more = f", and {len(others) - 1} more" if others[1:] else ""
        raise UserError(
            f"{others[0]}{more}: changed at {when}, which is in the future: what is made from it would look "
            f"older, and Snakemake would remove it; set the clock right, or run {_touch(others)}"
        )
    for path in ours:
        os.utime(path, (now, now))
    return ours


def _touch(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return f"`touch {paths[0]}`"
    places = sorted({path.parts[0] if not path.is_absolute() else str(path.parent) for path in paths})
    return f"`find {' '.join(places)} -newermt now -exec touch {{}} +`"
