"""Queries, keys and values cut along the heads: the same tensors from fewer operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from ptq2themoon.deploy.heads_apart import cut_heads
from ptq2themoon.graph.editing.onnx_graph import Graph

CUT = "r = Reshape(x, five) t = Transpose <perm = [2, 0, 3, 1, 4]> (r) a, b, c = Split <axis = 0> (t, ones)"
SQUEEZES = "q = Squeeze(a, axis) k = Squeeze(b, axis) v = Squeeze(c, axis)"
USE = "k2 = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, k2) y = MatMul(s, v)"
CONSTANTS = {
    "five": np.array([-1, 5, 3, 2, 4]),
    "ones": np.array([1, 1, 1]),
    "axis": np.array([0]),
    "front": np.array([2]),
    "parts": np.array([0, 3, 40]),
    "second": np.array([1]),
    "back": np.array([-1, 2, 5, 4]),
    "free": np.array([0, 5, 3, -1, 4]),
}


def graph_of(body: str) -> Graph:
    head = '<ir_version: 9, opset_import: ["": 20]> g (float[batch, 5, 24] x) => (float[batch, 2, 5, 4] y)'
    model = onnx.parser.parse_model(f"{head} {{ {body} }}")
    used = {name for node in model.graph.node for name in node.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in used}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return Graph(model)


def rewritten(body: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = graph_of(body)
    cut_heads(graph)
    return graph.model, graph.finish()


@pytest.mark.parametrize(
    "body",
    [
        f"{CUT} {SQUEEZES} {USE}",
        f"{CUT} q1 = Squeeze(a, axis) q = Relu(q1) k = Squeeze(b, axis) v = Squeeze(c, axis) {USE}",
        f"{CUT} {SQUEEZES} {USE}".replace("[2, 0, 3, 1, 4]", "[0, 3, 2, 1, 4]")
        .replace("axis = 0> (t", "axis = 2> (t")
        .replace(", axis)", ", front)"),
    ],
)
def test_the_same_function_of_fewer_operators(body: str) -> None:
    before, after = rewritten(body)
    onnx.checker.check_model(after, full_check=True)
    assert "Squeeze" not in {node.op_type for node in after.graph.node}
    x = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)
    wanted, found = (ReferenceEvaluator(model).run(None, {"x": x})[0] for model in (before, after))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (f"{CUT} {SQUEEZES} {USE}".replace("(x, five)", "(x, free)"), "a size is left to the Reshape"),
        (
            f"{CUT} {SQUEEZES} {USE}".replace("Squeeze(c, axis)", "ReduceMax <keepdims = 0> (c, axis)"),
            "no Squeeze",
        ),
        (f"{CUT} n = Neg(t) {SQUEEZES} {USE}", "something else reads between"),
        (
            "r = Reshape(x, parts) t = Transpose(r) a, b, c = Split <axis = 1> (t, ones) "
            "q = Squeeze(a, second) k = Squeeze(b, second) v = Squeeze(c, second) "
            "s = Add(q, k) u = Add(s, v) y = Reshape(u, back)",
            "axes reversed, which no perm says",
        ),
    ],
)
def test_left_as_it_is_where(body: str, why: str) -> None:
    before, after = rewritten(body)
    kept = [node.op_type for node in before.graph.node if node.op_type in ("Split", "Squeeze", "Transpose")]
    found = [node.op_type for node in after.graph.node if node.op_type in ("Split", "Squeeze", "Transpose")]
    assert found == kept, why
