"""Reading ONNX files: whole, with their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from ptq2themoon.graph.sources.outside_data import take_inside
from ptq2themoon.vocabulary.errors import UserError

Check = Callable[[onnx.ModelProto], onnx.ModelProto]


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it is, if ONNX's checker takes it."""
    onnx.checker.check_model(model)
    return model


def read_graph(path: Path, check: Check = checked, *, outside: bool = False) -> onnx.ModelProto:
    """An ONNX model; no other file is read, unless `outside`.

    Args:
        outside: read constants that lie in files of the model's own folder.
        check: what the model must pass, and what comes of it.

    Raises:
        UserError: no valid ONNX file, one with weights in other files, or with weights that are no numbers.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        if outside:
            take_inside(model, path)
        for tensor in _tensors(model):
            if tensor.data_location == TensorProto.EXTERNAL:
                raise UserError(
                    f"{path}: constant {tensor.name!r} lies outside the ONNX file; "
                    "save it with its weights inside"
                )
        model = check(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise UserError(f"{path}: not a valid ONNX model ({' '.join(str(error).split())})") from None
    if not model.graph.node:
        raise UserError(f"{path}: not a valid ONNX model (it has no operators)")
    for tensor in _tensors(model):
        if tensor.data_type == TensorProto.FLOAT and np.isnan(numpy_helper.to_array(tensor)).any():
            raise UserError(f"{path}: constant {tensor.name!r} holds values that are not finite")
    return model


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    """All constants: of the graph, of attributes, of subgraphs and functions."""
    found: list[TensorProto] = []
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            found += graph.initializer
            sparse = list(graph.sparse_initializer)
        else:
            attributes = nodes.pop().attribute
            found += [tensor for item in attributes for tensor in (item.t, *item.tensors)]
            sparse = [tensor for item in attributes for tensor in (item.sparse_tensor, *item.sparse_tensors)]
            graphs += [graph for item in attributes for graph in (item.g, *item.graphs)]
        found += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    return found
