"""Reading ONNX files: whole, with their weights inside, and of the same model as the files beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from ptq2themoon.errors import UserError
from ptq2themoon.graph.report import read_operators
from ptq2themoon.stage import sha256


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX model; no other file is read.

    Raises:
        UserError: no valid ONNX file, one with weights in other files, or with weights that are no numbers.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        tensors = _tensors(model)
        for tensor in tensors:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise UserError(
                    f"{path}: constant {tensor.name!r} lies outside the ONNX file; "
                    "save it with its weights inside"
                )
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise UserError(f"{path}: not a valid ONNX model ({' '.join(str(error).split())})") from None
    if not model.graph.node:
        raise UserError(f"{path}: not a valid ONNX model (it has no operators)")
    for tensor in tensors:
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


def check_same_model(
    graph: Path, fusion: Path, info: Path, input_size: Sequence[int], qparams: Sequence[Path] | None = None
) -> None:
    """Refuse files that do not belong to the fused model at `graph`.

    Args:
        input_size: [channels, height, width] that model.json (`info`) gives.
        qparams: qparams.json first.
    """
    model = read_graph(graph)
    found = [(operator.name, operator.type) for operator in read_operators(fusion)]
    if found != [(node.name, node.op_type) for node in model.graph.node]:
        raise UserError(f"{fusion}: lists other operators than {graph} has; run the fuse stage again")
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    if size != list(input_size):
        raise UserError(
            f"{info}: preprocessing.input_size is {list(input_size)}, but {graph} takes {size}; "
            "it belongs to another model"
        )
    if qparams:
        _check_parameters(qparams[0], graph)


def _check_parameters(qparams: Path, graph: Path) -> None:
    try:
        made_for = json.loads(qparams.read_text(encoding="utf-8"))["graph_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{qparams}: not quantization parameters of ptq2themoon ({reason}); calibrate again"
        ) from None
    if made_for != sha256(graph):
        raise UserError(f"{qparams}: the parameters belong to another graph than {graph}; calibrate again")
