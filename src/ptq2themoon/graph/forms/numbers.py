"""One type of number for all that is computed: float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, tensor_types

BOUNDS = np.finfo(np.float32)


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 where it has doubles, without Casts to the type that a tensor has already.

    A finite double beyond the range of float32, as masks are, becomes the last number of that range.
    """
    graph = Graph(model)
    doubles = {name: value for name, value in graph.constants.items() if value.dtype == np.float64}
    casts = [node for node in graph.nodes if node.op_type == "Cast"]
    if not doubles and not casts:
        return model
    for name, value in doubles.items():
        graph.constants[name] = _narrowed(value)
    for cast in casts:
        for item in cast.attribute:
            if item.name == "to" and item.i == TensorProto.DOUBLE:
                item.i = TensorProto.FLOAT
    model = graph.finish()
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return _without_casts(model)


def _narrowed(value: np.ndarray) -> np.ndarray:
    within = np.clip(value, BOUNDS.min, BOUNDS.max)
    return np.where(np.isinf(value), value, within).astype(np.float32)


def _without_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, types = Graph(model), tensor_types(model)
    for node in [node for node in graph.nodes if node.op_type == "Cast"]:
        source, out = node.input[0], node.output[0]
        if types.get(source) != attribute(node, "to"):
            continue
        before = graph.producer(source)
        if out not in graph.outputs:
            graph.rename_uses(out, source)
        elif before is not None and source not in graph.outputs:
            graph.rename_uses(source, out)
            before.output[list(before.output).index(source)] = out
        else:
            continue
        graph.nodes = [other for other in graph.nodes if other is not node]
        graph.reindex()
    return graph.finish()
