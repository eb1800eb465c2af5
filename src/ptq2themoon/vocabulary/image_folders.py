"""Folders of images and of classes; apart from the sources of images, which need torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from ptq2themoon.vocabulary.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".bmp", ".dib"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".jp2", ".j2k", ".jpx", ".jpf"}
)
SPECIAL = "no regular file"
# Folders that systems and programs make by themselves, in any folder.
FOREIGN_FOLDERS = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__pycache__",
    }
)
FOREIGN = "folder of a system"
ClassOrder = Literal["string", "natural"]


class Entry(NamedTuple):
    """A file in a folder of images: its path from there, and why it is passed over ("" if it is not)."""

    key: str
    passed_over: str


def class_folders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones, and those of a system, are no classes."""
    if not path.is_dir():
        return []
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not _is_foreign(p.name))


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name in FOREIGN_FOLDERS


def entries(path: Path) -> Iterator[Entry]:
    """Every file at any depth in a folder, links followed; names that begin with a dot are no part of it.

    Raises:
        UserError: a folder that is there twice, by a link, or can't be read.
    """
    try:
        yield from _entries(path)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


def _entries(path: Path) -> Iterator[Entry]:
    seen = {_identity(parent): parent for parent in path.resolve().parents}
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folder = path / inside
        other = seen.setdefault(_identity(folder), folder)
        if other is not folder:
            raise UserError(
                f"{folder} and {other} are one folder, so images would count more than once; remove the link"
            )
        with os.scandir(folder) as found:
            files = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
        for one in files:
            key = f"{inside}/{one.name}" if inside else one.name
            if os.path.isdir(one.path):  # False for a link to itself, which is a broken image
                if one.name in FOREIGN_FOLDERS:
                    yield Entry(key, FOREIGN)
                else:
                    waiting.append(key)
            else:
                yield Entry(key, _passed_over(one))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _passed_over(entry: os.DirEntry[str]) -> str:
    # A pipe would be waited for without end. A link to nothing is a broken image, and counts as one.
    if not os.path.isfile(entry.path) and os.path.exists(entry.path):
        return SPECIAL
    suffix = Path(entry.name).suffix.lower()
    return "" if suffix in SUFFIXES else suffix or "no suffix"


def counted(path: Path, most: int) -> int:
    """How many images a folder holds; `most` where there are more."""
    return sum(1 for _ in islice((entry for entry in entries(path) if not entry.passed_over), most))


def summary(passed: Sequence[Entry]) -> str:
    """`6 .heic, 2 no suffix; such as ant/phone.heic`."""
    kinds = Counter(entry.passed_over for entry in passed).most_common()
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds[:5]) + (", ..." if kinds[5:] else "")
    return f"{shown}; such as {passed[0].key}"


def ordered(names: Sequence[str], order: ClassOrder | None) -> list[str]:
    """Class folders in the order of their labels: as text, or as timm's training has them."""
    return sorted(names, key=_natural_key) if order == "natural" else sorted(names)


def _natural_key(name: str) -> tuple[list[int | str], str]:
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], name


def order_problem(names: Sequence[str]) -> str | None:
    """What is to be decided where text and numbers order the class folders differently."""
    text, natural = ordered(names, "string"), ordered(names, "natural")
    if text == natural:
        return None
    first = next(i for i, (one, other) in enumerate(zip(text, natural, strict=True)) if one != other)
    one, other = (", ".join(order[first : first + 4]) for order in (text, natural))
    return (
        f"from place {first} on class folders are {one} in the order of text, as torchvision labels them, "
        f"but {other} in that of numbers, without case, as timm does; say which the model was trained with: "
        "`class_order: string` or `class_order: natural`"
    )


def nested_problem(path: Path, order: ClassOrder | None) -> str | None:
    """What is to be decided where images lie deeper than in the folder of their class."""
    if order == "string":
        return None
    keys = (entry.key for entry in entries(path) if not entry.passed_over)
    first = next((key.split("/") for key in keys if key.count("/") > 1), None)
    if first is None:
        return None
    differ = (
        f"{'/'.join(first)} is of class {first[0]!r} here, as torchvision labels it, "
        f"but of class {first[-2]!r} as timm does, by the innermost folder"
    )
    if order == "natural":
        return f"{differ}; put the images right into the folder of their class"
    return (
        f"{differ}; say `class_order: string` if the model was trained with the first, else move the images"
    )
