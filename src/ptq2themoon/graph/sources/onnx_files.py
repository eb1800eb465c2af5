"""Reading ONNX files: whole, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from ptq2themoon.graph.editing.one_message import check_model
from ptq2themoon.graph.editing.onnx_graph import all_nodes
from ptq2themoon.graph.sources.bounds import refuse_unbounded, tensors
from ptq2themoon.graph.sources.outside_data import take_inside
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import check_data

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
Check = Callable[[onnx.ModelProto], onnx.ModelProto]


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it is, if ONNX's checker takes it."""
    check_model(model)
    return model


def read_graph(path: Path, check: Check = checked) -> onnx.ModelProto:
    """An ONNX model with its weights in memory; no file is read that is not in the model's own folder.

    Args:
        check: what the model must pass, and what comes of it.

    Raises:
        UserError: no valid ONNX file, one without the data that it needs, or weights that are no numbers.
    """
    with one_line(path):
        return _read(path, check)


def _read(path: Path, check: Check) -> onnx.ModelProto:
    check_data(path)
    model = onnx.load(path, load_external_data=False)
    take_inside(model, path)
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(
                f"{path}: constant {tensor.name!r} lies outside the ONNX file; "
                "save it with its weights inside"
            )
    refuse_unbounded(model, path)
    model = check(model)
    for part, there in (("operators", model.graph.node), ("outputs", model.graph.output)):
        if not there:
            raise UserError(f"{path}: not a valid ONNX model (it has no {part})")
    for tensor in tensors(model):
        if tensor.data_type in FLOATS and np.isnan(numpy_helper.to_array(tensor)).any():
            reader = _read_by(model, tensor.name)
            raise UserError(f"{path}: constant {tensor.name!r}{reader} holds values that are not finite")
    return model


def _read_by(model: onnx.ModelProto, constant: str) -> str:
    reader = next((node for node in all_nodes(model.graph.node) if constant in node.input), None)
    return f" of operator {reader.name or reader.output[0]!r} ({reader.op_type})" if reader else ""


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """What a broken file makes of the code that reads it, as a refusal of the file in one line.

    ONNX, its checker, shape inference and protobuf have many kinds of error, without a common ancestor.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a valid ONNX model (names that are no UTF-8 text)") from None
    except (OSError, DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{path}: not a valid ONNX model ({_short(error)})") from None
    except Exception as error:
        kind = type(error).__name__
        raise UserError(f"{path}: not a usable ONNX model ({kind}: {_short(error)})") from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:299]}…"
