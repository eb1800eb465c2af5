"""In which files beside an ONNX file its constants lie, read from the file's outline: no weight is loaded.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields, each with a number and a type.
https://onnx.ai/onnx/repo-docs/ExternalData.html: what a constant says of its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ptq2themoon.vocabulary.errors import UserError

GRAPH, INITIALIZER, NAME, EXTERNAL, KEY, VALUE = 7, 5, 8, 13, 1, 2  # numbers of fields in onnx.proto
VARINT, EIGHT_BYTES, WITH_LENGTH, FOUR_BYTES = 0, 1, 2, 5  # types of fields
LONGEST_NAME = 4096  # bytes
LARGEST_MESSAGE = 2**31 - 1  # bytes of a file of protobuf, and of a constant in memory
MOST_BYTES = 1_600_000_000  # of weights in one file: torch too writes a second from 1,610,612,737 on


def data_beside(path: Path) -> Path:
    """`int8.onnx` -> `int8.onnx.data`: where weights are written that an ONNX file cannot hold."""
    return path.with_name(f"{path.name}.data")


def written_data(path: Path) -> list[Path]:
    """The file of weights that was written with an ONNX file, whether it is there or not; none for most."""
    beside = data_beside(path)
    return [beside] if any(entry["location"] == beside.name for entry in _outside(path)) else []


def data_files(path: Path) -> list[Path]:
    """The files that constants of the graph lie in, each once; none for a file that is no ONNX file.

    Raises:
        UserError: a file that is not in the folder of the ONNX file or below.
    """
    return [place_of(path, name) for name in sorted({entry["location"] for entry in _outside(path)})]


def model_bytes(path: Path) -> int:
    """Bytes of an ONNX file with the constants outside of it, as far as the file says their lengths."""
    return path.stat().st_size + sum(whole_number(entry.get("length", "")) or 0 for entry in _outside(path))


def whole_number(text: str) -> int | None:
    """A number of 0 or more that a file may state."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def size_problem(path: Path) -> str | None:
    """What keeps an ONNX file from being read, by the sizes that it states."""
    if (size := path.stat().st_size) > LARGEST_MESSAGE:
        return (
            f"has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most; "
            "save the model with its weights in a file beside it"
        )
    largest = max((whole_number(entry.get("length", "")) or 0 for entry in _outside(path)), default=0)
    return constant_problem(largest)


def constant_problem(size: int) -> str | None:
    """What keeps a model from being brought in that has a constant of so many bytes."""
    if size <= LARGEST_MESSAGE:
        return None
    return f"has a constant of {size / 1e9:.1f} GB, and ONNX holds 2 GB in one; give a smaller model"


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


def start_of(path: Path, constant: str, stated: Mapping[str, str], size: int) -> tuple[Path, int]:
    """The file that holds a constant outside, and where in it: what an ONNX file states, checked.

    Args:
        size: bytes of the constant.

    Raises:
        UserError: a file outside of the ONNX file's folder, or one that does not hold the constant.
    """
    place = place_of(path, stated.get("location", ""))
    start = whole_number(stated.get("offset", "0"))
    length = whole_number(stated.get("length", str(size)))
    there = place.stat().st_size
    if start is None or length != size or start + size > there:
        raise UserError(
            f"{path}: constant {constant!r} needs {size} bytes; {place.name} of {there} does not hold "
            f"them from {stated.get('offset', '0')} on; save the model again"
        )
    return place, start


def check_data(path: Path) -> None:
    """Look at an ONNX file and at the files that its constants lie in, before anything else reads them.

    Raises:
        UserError: sizes that cannot be read; as `start_of`; content of another sum (SHA-1) than the ONNX file
            states.
    """
    if problem := size_problem(path):
        raise UserError(f"{path}: {problem}")
    sums: dict[Path, set[str]] = {}
    for entry in _outside(path):
        size = whole_number(entry.get("length", "")) or 0
        place, _ = start_of(path, entry.get("name", ""), entry, size)
        sums.setdefault(place, set()).update({entry["checksum"]} if "checksum" in entry else ())
    for place, stated in sums.items():
        if stated and stated != {_sum_of(place)}:
            raise UserError(
                f"{path}: {place.name} beside it has other content than when the model was saved; "
                "put the right file there, or save the model again"
            )


def _sum_of(place: Path) -> str:
    with place.open("rb") as file:
        return hashlib.file_digest(file, new_sum).hexdigest()


def new_sum(content: bytes = b"") -> hashlib._Hash:
    """The sum that ONNX has for a file of constants: it tells files apart, and keeps nobody out."""
    return hashlib.sha1(content, usedforsecurity=False)


class _NoMessage(Exception):
    """Bytes that are no protobuf."""


def _outside(path: Path) -> list[dict[str, str]]:
    """Where each constant outside lies: location and, where the file says so, offset and length."""
    try:
        size = path.stat().st_size
        if size > LARGEST_MESSAGE:
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
                if what == NAME:
                    found["name"] = _text(file, begin, stop)
                elif what == EXTERNAL:
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
