"""Constants of an ONNX file that lie in files beside it, taken into the model."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import place_of, size_problem, whole_number


def take_inside(model: onnx.ModelProto, path: Path) -> None:
    """Read what lies outside, in place; only files in the folder of the ONNX file are read.

    Raises:
        UserError: a place outside of that folder, or that does not hold what the constant says, or more than
            a file can hold.
    """
    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    sizes = [_bytes(tensor, path) for tensor in outside]
    total = sum(sizes) + path.stat().st_size
    if problem := size_problem(total):
        raise UserError(f"{path}: {problem}")
    for tensor, size in zip(outside, sizes, strict=True):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = place_of(path, entries.get("location", ""))
        start = whole_number(entries.get("offset", "0"))
        length = whole_number(entries.get("length", str(size)))
        there = place.stat().st_size
        if start is None or length != size or start + size > there:
            raise UserError(
                f"{path}: constant {tensor.name!r} needs {size} bytes; {place.name} of {there} does not hold "
                f"them from {entries.get('offset', '0')} on; save the model again"
            )
        with place.open("rb") as file:
            file.seek(start)
            tensor.raw_data = file.read(size)
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def _bytes(tensor: TensorProto, path: Path) -> int:
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        raise UserError(f"{path}: constant {tensor.name!r} is of a type that is not known") from None
    if any(size < 0 for size in tensor.dims):
        raise UserError(f"{path}: constant {tensor.name!r} has a negative size")
    return prod(tensor.dims) * width
