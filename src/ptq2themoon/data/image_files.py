"""The two files of the data stage: images with labels (safetensors), and the evaluation manifest (CSV)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from ptq2themoon.vocabulary.csv_lines import short_lines
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.validation import shown

COLUMNS = ["source", "label"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with what a spreadsheet takes a cell for a formula
LABEL = re.compile(r"-1|[0-9]{1,9}")
PLAIN = "./"  # before a name that could be taken for something else
A = TypeVar("A")


class Row(NamedTuple):
    """One image of an evaluation: its key in the source, and the index of its class, -1 where unknown."""

    source: str
    label: int


def write_images(
    path: Path,
    rows: Iterable[tuple[Tensor, int, int]],
    shape: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    """Stream (image uint8 [C, H, W], label, index in the source) into a safetensors file.

    Written here and not by safetensors, which needs all images in memory and orders metadata at random.
    `shape` is [N, C, H, W]; a ValueError says when `rows` holds another number of images or another size.
    """
    count, size = shape[0], list(shape[1:])
    header = _header(shape, metadata)
    numbers = np.empty((2, count), dtype="<i8")
    done = 0
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(numbers.nbytes, 1)
        for image, label, index in rows:
            if list(image.shape) != size or done == count:
                raise ValueError(f"image {done} of shape {list(image.shape)} does not fit in {list(shape)}")
            file.write(image.contiguous().numpy().tobytes())
            numbers[:, done] = label, index
            done += 1
        if done != count:
            raise ValueError(f"{done} images, {count} announced")
        file.seek(8 + len(header))
        file.write(numbers.tobytes())


def _header(shape: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """labels and index first: as int64 they need an aligned place."""
    count = shape[0]
    images = 16 * count
    header = {
        "__metadata__": dict(sorted(metadata.items())),
        "labels": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]},
        "index": {"dtype": "I64", "shape": [count], "data_offsets": [8 * count, images]},
        "images": {
            "dtype": "U8",
            "shape": list(shape),
            "data_offsets": [images, images + int(np.prod(shape))],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Columns source, label."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(
            (f"{PLAIN}{source}" if source.startswith((*FORMULA, PLAIN)) else source, label)
            for source, label in rows
        )


def read_manifest(path: Path, num_classes: int | None = None) -> list[Row]:
    """Read what `write_manifest` wrote.

    Every label must lie below `num_classes`; with None, the model has no classes and a label may be -1.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *lines = csv.reader(short_lines(file))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: no manifest with columns {','.join(COLUMNS)}: {error}") from error
    if header != COLUMNS:
        raise UserError(f"{path}: columns {','.join(header)}; {','.join(COLUMNS)} expected")
    rows = []
    for number, line in enumerate(lines, start=2):
        if len(line) != 2 or not LABEL.fullmatch(line[1]):
            raise UserError(f"{path}:{number}: {shown(','.join(line))} is no source and label")
        row = Row(line[0].removeprefix(PLAIN), int(line[1]))
        if num_classes is not None and row.label < 0:
            raise UserError(
                f"{path}:{number}: no label, but the model tells {num_classes} classes apart; list again"
            )
        if num_classes is not None and row.label >= num_classes:
            raise UserError(f"{path}:{number}: label {row.label}, but the model tells {num_classes} apart")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: lists no images")
    return rows


def spread(rows: Sequence[A], count: int, option: str, path: Path) -> list[A]:
    """`count` rows, or places of rows, of the manifest at `path`, at equal distances.

    A sorted manifest begins with one class.
    """
    at_least(1, count, option)
    if count > len(rows):
        raise UserError(f"{option} {count}: {path} lists {len(rows)} images")
    return list(rows[:: len(rows) // count][:count])
