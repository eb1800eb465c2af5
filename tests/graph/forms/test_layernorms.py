"""Which operators read a LayerNorm's channels where they lie, and which move them elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ptq2themoon.graph.editing.onnx_graph import Graph, tensor_shapes
from ptq2themoon.graph.forms.layernorms import readers_of, scalable_norms

KEPT, MOVED = [1, 0, 2], [0, 2, 1]


def graph_with(between: NodeProto) -> Graph:
    """LayerNorm over 4 channels, `between` from "n" to "t", and a MatMul that reads it."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm"),
        between,
        helper.make_node("MatMul", ["t", "w"], ["y"], name="linear"),
    ]
    values = {"gamma": np.ones(4), "beta": np.zeros(4), "w": np.eye(4)}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    return Graph(model)


@pytest.mark.parametrize(
    ("between", "readers"),
    [
        (helper.make_node("Transpose", ["n"], ["t"], name="move", perm=KEPT), ["linear"]),
        (helper.make_node("Transpose", ["n"], ["t"], name="move", perm=MOVED), ["move"]),
        (helper.make_node("Identity", ["n"], ["t"], name="move"), ["linear"]),
        (helper.make_node("Concat", ["n", "n"], ["t"], name="move", axis=1), ["linear"]),
        (helper.make_node("Concat", ["n", "n"], ["t"], name="move", axis=2), None),
    ],
)
def test_readers_lie_past_what_keeps_the_channels_last(between: NodeProto, readers: list[str] | None) -> None:
    graph = graph_with(between)
    (norm,) = scalable_norms(graph)
    found = readers_of(graph, tensor_shapes(graph.model), norm)
    assert (found and [node.name for node in found]) == readers
