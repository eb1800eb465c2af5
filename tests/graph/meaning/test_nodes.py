"""What a quantizer must know of each operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_models import random_images, written

from ptq2themoon.graph.meaning.nodes import Node, read_nodes
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator


def test_ranks_and_parameters(tiny_file: tuple[Path, list[Operator]]) -> None:
    path, operators = tiny_file
    nodes = read_nodes(onnx.load(path))
    assert list(nodes) == [operator.name for operator in operators]
    assert [node.type for node in nodes.values()] == [operator.type for operator in operators]
    layer = Node("PPQBiasFusedMatMul", [False, True, True], [3, 2, 1], [3], transposed_weight=False)
    attention = Node("MatMul", [False, False], [4, 4], [4], transposed_weight=False)
    norm = Node("LayerNormalization", [False, True, True], [3, 1, 1], [3], transposed_weight=False)
    expected = {
        "patch_embed": Node("Conv", [False, True, True], [4, 4, 1], [4], transposed_weight=False),
        "pos_add": Node("Add", [False, True], [3, 3], [3], transposed_weight=False),
        "head": Node("Gemm", [False, True, True], [2, 2, 1], [2], transposed_weight=True, is_last=True),
        "norm": norm,
    }
    for block in range(2):
        expected |= {f"blocks.{block}.{role}": layer for role in ("qkv", "proj", "fc1", "fc2")}
        expected |= {f"blocks.{block}.{role}": attention for role in ("attn_scores", "attn_context")}
        expected |= {f"blocks.{block}.{role}": norm for role in ("norm1", "norm2")}
        expected[f"blocks.{block}.softmax"] = Node("Softmax", [False], [4], [4], transposed_weight=False)
        expected[f"blocks.{block}.gelu"] = Node("Gelu", [False], [3], [3], transposed_weight=False)
        for role in ("residual1", "residual2"):
            expected[f"blocks.{block}.{role}"] = Node("Add", [False, False], [3, 3], [3], False)
    assert {name: nodes[name] for name in expected} == expected


def test_a_left_out_input_has_no_rank(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = written("y = Clip (x, , high)", {"high": random_images(1, 1)[0, 0]})
    model.graph.node[0].name = "clip"
    onnx.save(model, path)
    assert read_nodes(onnx.load(path))["clip"].input_ranks == [3, 0, 0]
    assert read_nodes(onnx.load(path))["clip"].parameter_inputs == [False, False, True]


def test_an_unknown_rank_is_refused(tmp_path: Path) -> None:
    """Taken for a scalar it would silently be quantized per tensor."""
    path = tmp_path / "model.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20, "other": 1]> g (float[1, 8] x) => (float[1, 8] y)'
        "{ a = other.Mystery (x) y = Neg (a) }"
    )
    model.graph.node[1].name = "negate"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"\(Mystery\): the shape of tensor 'a' is not known"):
        read_nodes(onnx.load(path))


def test_what_others_are_divided_by_has_no_scale() -> None:
    """Back to the length; a constant divisor is one of the recipe's."""
    body = "n = ReduceL2 <axes = [-1]> (x)\nc = Clip (n, low)\nd = Div (x, c)\ny = Div (d, two)"
    model = written(body, {"low": np.float32(1e-6), "two": np.float32(2)})
    for node in model.graph.node:
        node.name = node.op_type if node.output[0] != "y" else "Halved"
    nodes = read_nodes(model)
    assert {name: (node.hidden_inputs, node.hidden_outputs) for name, node in nodes.items()} == {
        "ReduceL2": (set(), {0}),
        "Clip": ({0}, {0}),
        "Div": ({1}, set()),
        "Halved": (set(), set()),
    }


@pytest.mark.parametrize("divides", ["d = Div (x, r)", "i = Reciprocal (r) d = Mul (i, x)"])
def test_a_length_written_out_has_no_scale(divides: str) -> None:
    """Its squares least of all: those of short vectors would be 0."""
    body = f"s = Mul (x, x) t = ReduceSum (s, last) a = Add (t, low) r = Sqrt (a) {divides} y = Mul (d, two)"
    constants = {"low": np.array(1e-6, np.float32), "two": np.array(2, np.float32), "last": np.array([-1])}
    model = written(body, constants)
    for node in model.graph.node:
        node.name = node.output[0]
    nodes = read_nodes(model)
    inner = {"s", "t", "a", "r", "i"} & set(nodes)
    assert {name for name, node in nodes.items() if node.hidden_outputs} == inner
    assert {name for name, node in nodes.items() if node.hidden_inputs} == inner - {"s"} | {"d"}
