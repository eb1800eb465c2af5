"""Tensors of one row per image in a safetensors file, written and read some rows at a time.

safetensors needs all rows in memory to write them. It maps a file to read it, and then all that was ever read
counts as memory of the process.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

KINDS = {"F32": torch.float32, "F64": torch.float64, "U8": torch.uint8}
NAMES = {kind: name for name, kind in KINDS.items()}


class TensorRows:
    """A tensor [N, ...] in a file; an index reads the rows that it names, and no others.

    Args:
        name: of a tensor in it.
        rows: of which of its rows, in a file of more; None: all.

    Raises:
        SafetensorError, OSError: no whole safetensors file, or no such tensor of rows.
    """

    def __init__(self, path: Path, name: str, rows: range | None = None) -> None:
        with safe_open(path, "pt") as file:  # checks the header against the file
            file.get_slice(name)
        self.path, self.name = path, name
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (read as long as this lives)
        length = int.from_bytes(os.pread(self._file.fileno(), 8, 0), "little")
        entry = json.loads(os.pread(self._file.fileno(), length, 8))[name]
        if entry["dtype"] not in KINDS or not entry["shape"]:
            raise SafetensorError(f"tensor {name!r} is {entry['dtype']} {entry['shape']}")
        self._kind, whole = KINDS[entry["dtype"]], entry["shape"]
        self._rows = range(whole[0]) if rows is None else rows
        self.shape = (len(self._rows), *whole[1:])
        self._start, self._width = 8 + length + entry["data_offsets"][0], _width(whole, self._kind)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Sequence[int]) -> Tensor:
        """The rows of a slice without steps, or at these places: [rows, ...]."""
        if not isinstance(index, slice):
            return torch.cat([self[place : place + 1] for place in index])
        chosen = self._rows[index]
        size, found = len(chosen) * self._width, bytearray()
        while len(found) < size:
            place = self._start + chosen.start * self._width + len(found)
            more = os.pread(self._file.fileno(), size - len(found), place)
            if not more:
                raise OSError(f"{self.path}: ends within tensor {self.name!r}")
            found += more
        shape = (len(chosen), *self.shape[1:])
        return (
            torch.frombuffer(found, dtype=self._kind).reshape(shape)
            if size
            else torch.empty(shape, dtype=self._kind)
        )

    def split(self, size: int) -> Iterator[Tensor]:
        """So many rows after another, the last ones fewer."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def part(self, rows: range) -> TensorRows:
        """Some of its rows, which are read when they are asked for."""
        return TensorRows(self.path, self.name, self._rows[rows.start : rows.stop])


class RowsFile:
    """A safetensors file under construction, its bytes those that safetensors writes.

    with RowsFile(path, 2000, metadata) as file:
        for output in outputs:
            file.add(output=output)

    Args:
        count: N, rows of every tensor; ValueError where others were added.
    """

    def __init__(self, path: Path, count: int, metadata: Mapping[str, str]) -> None:
        self.path, self.count, self.metadata = path, count, dict(sorted(metadata.items()))
        self._done = 0
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, **tensors: Tensor) -> None:
        """The next rows of each tensor, [rows, ...]."""
        (rows,) = {len(tensor) for tensor in tensors.values()}
        if not self._places:
            self._begin(tensors)
        for name, tensor in tensors.items():
            start, width = self._places[name]
            self._file.seek(start + self._done * width)
            self._file.write(tensor.contiguous().numpy().tobytes())
        self._done += rows

    def _begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Reserve a place for each; the widest numbers first, as they need an aligned place."""
        header: dict[str, object] = {"__metadata__": self.metadata}
        end = 0
        ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        for name in ordered:
            shape = [self.count, *tensors[name].shape[1:]]
            width = _width(shape, tensors[name].dtype)
            self._places[name], start = (end, width), end
            end += self.count * width
            header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._places = {name: (8 + len(text) + place, width) for name, (place, width) in self._places.items()}

    def __enter__(self) -> Self:
        self._file: BinaryIO = open(self.path, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self.count:
            self._begin({})
        self._file.close()
        if kind is None and self._done != self.count:
            raise ValueError(f"{self.path}: {self._done} rows, {self.count} announced")


def _width(shape: Sequence[int], kind: torch.dtype) -> int:
    """Bytes of a row."""
    return math.prod(shape[1:]) * kind.itemsize
