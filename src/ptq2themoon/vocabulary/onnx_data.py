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
MOST_BYTES = 2**31 - 2**20  # of weights: a protobuf file holds 2 GB, the graph among them


def data_files(path: Path) -> list[Path]:
    """The files that constants of the graph lie in, each once; none for a file that is no ONNX file.

    Raises:
        UserError: a file that is not in the folder of the ONNX file or below.
    """
    return [place_of(path, name) for name in sorted({entry["location"] for entry in _outside(path)})]


def weight_bytes(path: Path) -> int:
    """Bytes of an ONNX file with the constants outside of it, as far as the file says their lengths."""
    return path.stat().st_size + sum(whole_number(entry.get("length", "")) or 0 for entry in _outside(path))


def whole_number(text: str) -> int | None:
    """A number of 0 or more that a file may state."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def size_problem(weights: int) -> str | None:
    """What keeps a model with so many bytes of weights from being brought in."""
    if weights <= MOST_BYTES:
        return None
    return (
        f"its weights are {weights / 1e9:.1f} GB; the fused graph is one file, which holds 2 GB at most; "
        "give a smaller model"
    )


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


def _outside(path: Path) -> list[dict[str, str]]:
    """Where each constant outside lies: location and, where the file says so, offset and length."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            return []  # its own size is enough to refuse it
        with path.open("rb") as file:
            return list(_entries(file, size))
    except (OSError, _NoMessage):
        return []


def _entries(file: BinaryIO, size: int) -> Iterator[dict[str, str]]:
    for number, start, end in _fields(file, 0, size):
        if number != GRAPH:
            continue
        for inner, first, last in _fields(file, start, end):
            if inner != INITIALIZER:
                continue
            found = {}
            for what, begin, stop in _fields(file, first, last):
                if what == EXTERNAL:
                    entry = {key: (a, b) for key, a, b in _fields(file, begin, stop)}
                    found[_text(file, *entry.get(KEY, (0, 0)))] = _text(file, *entry.get(VALUE, (0, 0)))
            if "location" in found:
                yield found


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field with a length, in the bytes of a message."""
    at = start
    while at < end:
        tag, at = _varint(file, at)
        kind = tag & 7
        if not tag >> 3:
            raise _NoMessage  # no field has the number 0; else zeros would be read one by one
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
