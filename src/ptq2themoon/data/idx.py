"""The IDX format of MNIST and its successors."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ptq2themoon.vocabulary.errors import UserError

UNSIGNED_BYTE = 0x08


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one IDX file of unsigned bytes, plain or as `name`.gz; the shape is its header's."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        raw = plain.read_bytes() if path == plain else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{plain}: not found, nor its .gz; name the folder of the IDX files") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    if len(raw) < 4 or raw[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise UserError(f"{path}: no IDX file of unsigned bytes")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if len(raw) != start + np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: {len(raw)} bytes do not hold an array of shape {list(shape)}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()
