"""Constants of an ONNX file that lie in files beside it, taken into the model."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import constant_problem, start_of


def take_inside(model: onnx.ModelProto, path: Path) -> None:
    """Read what lies outside, in place; only files in the folder of the ONNX file are read.

    Raises:
        UserError: a place outside of that folder, one that does not hold what the constant says, or a
            constant that is too large.
    """
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        size = _bytes(tensor, path)
        if problem := constant_problem(size):
            raise UserError(f"{path}: {problem}")
        place, start = start_of(path, tensor.name, {e.key: e.value for e in tensor.external_data}, size)
        with place.open("rb") as file:
            file.seek(start)
            tensor.raw_data = file.read(size)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _bytes(tensor: TensorProto, path: Path) -> int:
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        raise UserError(f"{path}: constant {tensor.name!r} is of a type that is not known") from None
    if any(size < 0 for size in tensor.dims):
        raise UserError(f"{path}: constant {tensor.name!r} has a negative size")
    return prod(tensor.dims) * width
