"""In which files beside an ONNX file its constants lie, read from the file's outline: no weight is loaded.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields, each with a number and a type.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ptq2themoon.vocabulary.errors import UserError

GRAPH, INITIALIZER, EXTERNAL, KEY, VALUE = 7, 5, 13, 1, 2  # numbers of fields in onnx.proto
VARINT, EIGHT_BYTES, WITH_LENGTH, FOUR_BYTES = 0, 1, 2, 5  # types of fields
LONGEST_NAME = 4096  # bytes


def data_files(path: Path) -> list[Path]:
    """The files that constants of the graph lie in, each once; none for a file that is no ONNX file.

    Raises:
        UserError: a file that is not in the folder of the ONNX file or below.
    """
    try:
        with path.open("rb") as file:
            names = sorted(set(_locations(file, path.stat().st_size)))
    except (OSError, _NoMessage):
        return []
    return [place_of(path, name) for name in names]


def place_of(path: Path, location: str) -> Path:
    """The file that an ONNX file calls `location`.

    Raises:
        UserError: one that is not in the folder of the ONNX file or below, or that is no plain file.
    """
    folder, named = path.parent, Path(location)
    place = folder / named
    inside = location and not named.is_absolute() and ".." not in named.parts and "\\" not in location
    steps = [folder.joinpath(*named.parts[: i + 1]) for i in range(len(named.parts))]
    if not inside or any(step.is_symlink() for step in steps):
        raise UserError(
            f"{path}: its constants lie in {location!r}, which is not in the file's own folder; "
            "put the data there, not as a link, or save the model with its weights inside"
        )
    if not place.is_file():
        raise UserError(
            f"{path}: its constants lie in {location!r}, which is not there; put it beside the model"
        )
    return place


class _NoMessage(Exception):
    """Bytes that are no protobuf."""


def _locations(file: BinaryIO, size: int) -> Iterator[str]:
    """Names of files, one for each constant outside."""
    for number, start, end in _fields(file, 0, size):
        if number != GRAPH:
            continue
        for inner, first, last in _fields(file, start, end):
            if inner != INITIALIZER:
                continue
            for what, begin, stop in _fields(file, first, last):
                if what == EXTERNAL:
                    entry = {key: (a, b) for key, a, b in _fields(file, begin, stop)}
                    if _text(file, *entry.get(KEY, (0, 0))) == "location":
                        yield _text(file, *entry.get(VALUE, (0, 0)))


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field with a length, in the bytes of a message."""
    at = start
    while at < end:
        tag, at = _varint(file, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(file, at)
        elif kind == WITH_LENGTH:
            length, at = _varint(file, at)
            if at + length > end:
                raise _NoMessage
            yield tag >> 3, at, at + length
            at += length
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            at += 8 if kind == EIGHT_BYTES else 4
        else:
            raise _NoMessage


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """(number, where the next byte is)."""
    file.seek(at)
    value = 0
    for i, byte in enumerate(file.read(10)):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise _NoMessage


def _text(file: BinaryIO, start: int, end: int) -> str:
    if end - start > LONGEST_NAME:
        raise _NoMessage
    file.seek(start)
    try:
        return file.read(end - start).decode()
    except UnicodeDecodeError:
        raise _NoMessage from None
