"""Linear layers and the scale of attention: one form, the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.editing.onnx_graph import attribute
from ptq2themoon.graph.editing.operator_types import FUSED_MATMUL
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise

TOLERANCE = 1e-5
NOISE = np.random.default_rng(0)


def constants() -> dict[str, np.ndarray]:
    shapes = {"w": (8, 6), "wt": (6, 8), "b": (6,), "row": (1, 6), "square": (4, 6), "up": (6, 8)}
    floats = {name: NOISE.standard_normal(shape) for name, shape in shapes.items()}
    floats |= {"one": np.array([0.7]), "third": np.array(1 / 3), "s": np.array(0.25), "four": np.array(4.0)}
    targets = {
        "flat": [-1, 8],
        "tokens": [-1, 4, 6],
        "heads": [-1, 4, 3, 2],
        "four8": [-1, 4, 8],
        "axis": [1],
    }
    found = {name: value.astype(np.float32) for name, value in floats.items()}
    return {**found, **{name: np.array(value) for name, value in targets.items()}}


def unfused(body: str) -> onnx.ModelProto:
    return written(body, {name: value for name, value in constants().items() if name in _words(body)})


def fused_alike(body: str) -> list[onnx.NodeProto]:
    """The fused operators, after a check that outputs stay at batch one and three."""
    model = unfused(body)
    fused, _ = fuse(normalise(model))
    onnx.checker.check_model(fused, full_check=True)
    for batch in (1, 3):
        x = random_images(batch, 4, 8, seed=batch)
        expected = np.concatenate([run_all(model, row[None])[0] for row in x])
        np.testing.assert_allclose(run_all(fused, x)[0], expected, atol=TOLERANCE)
    return list(fused.graph.node)


def _words(body: str) -> list[str]:
    return body.replace("(", " ").replace(")", " ").replace(",", " ").split()


@pytest.mark.parametrize(
    ("gemm", "types"),
    [
        ("Gemm (m, w, b)", [FUSED_MATMUL]),
        ("Gemm <transB = 1> (m, wt, b)", [FUSED_MATMUL]),
        ("Gemm <alpha = 0.5, beta = 2.0> (m, w, b)", [FUSED_MATMUL]),
        ("Gemm (m, w, row)", [FUSED_MATMUL]),
        ("Gemm (m, w, one)", [FUSED_MATMUL]),
        ("Gemm <transB = 1> (m, wt)", ["MatMul"]),
    ],
)
def test_gemm_over_tokens_is_a_layer(gemm: str, types: list[str]) -> None:
    nodes = fused_alike(f"m = Reshape (x, flat)\ng = {gemm}\nz = Reshape (g, tokens)\ny = Neg (z)")
    assert [node.op_type for node in nodes] == [*types, "Neg"]


def test_the_reshape_after_gemm_may_go_further() -> None:
    nodes = fused_alike(
        "m = Reshape (x, flat)\ng = Gemm (m, w, b)\n"
        "h = Reshape (g, heads)\nn = Neg (h)\ny = Reshape (n, tokens)"
    )
    assert [node.op_type for node in nodes] == [FUSED_MATMUL, "Reshape", "Neg", "Reshape"]


def test_one_reshape_for_three_layers() -> None:
    body = "m = Reshape (x, flat)\n" + "\n".join(
        f"g{i} = Gemm (m, w, b)\nz{i} = Reshape (g{i}, tokens)" for i in range(3)
    )
    nodes = fused_alike(f"{body}\nz = Add (z0, z1)\ny = Add (z, z2)")
    assert [node.op_type for node in nodes].count(FUSED_MATMUL) == 3
    assert "Reshape" not in {node.op_type for node in nodes}


def test_layers_that_follow_each_other_as_gemm() -> None:
    """The simplifier has dropped the reshapes between them."""
    nodes = fused_alike(
        "m = Reshape (x, flat)\ng = Gemm (m, w, b)\nr = Relu (g)\nh = Gemm (r, up)\ny = Reshape (h, four8)"
    )
    assert [n.op_type for n in nodes] == ["Reshape", FUSED_MATMUL, "Relu", "MatMul", "Reshape"]


@pytest.mark.parametrize("layer", ["g = MatMul (m, w)\nh = Add (b, g)", "h = Gemm (m, w, row)"])
def test_one_row_an_image_is_a_gemm(layer: str) -> None:
    nodes = fused_alike(f"m = ReduceMean <axes = [1], keepdims = 0> (x)\n{layer}\ny = Unsqueeze (h, axis)")
    assert [node.op_type for node in nodes] == ["ReduceMean", "Gemm", "Unsqueeze"]
    assert attribute(nodes[1], "transB") == 1


def test_a_gemm_whose_bias_is_no_bias_stays() -> None:
    body = "one_image = Reshape (x, flat)\ng = Gemm (one_image, w, square)\ny = Reshape (g, tokens)"
    fused, _ = fuse(normalise(unfused(body)))
    assert "Gemm" in {node.op_type for node in fused.graph.node}


ATTENTION = "k = Transpose <perm = [0, 2, 1]> (x)\n{}\nw1 = Softmax <axis = -1> ({})\ny = MatMul (w1, x)"


@pytest.mark.parametrize(
    ("scores", "last"),
    [
        ("a = Mul (x, s)\np = MatMul (a, k)", "p"),
        ("a = Div (x, four)\np = MatMul (a, k)", "p"),
        ("a = Mul (third, x)\nc = Mul (k, third)\np = MatMul (a, c)", "p"),
        ("q = MatMul (x, k)\np = Div (q, four)", "p"),
        ("q = MatMul (x, k)\np = Mul (s, q)", "p"),
        ("a = Mul (x, s)\nq = MatMul (a, k)\np = Div (q, four)", "p"),
    ],
)
def test_scale_of_attention_is_one_mul_of_the_queries(scores: str, last: str) -> None:
    nodes = fused_alike(ATTENTION.format(scores, last))
    assert sorted(n.op_type for n in nodes) == ["MatMul", "MatMul", "Mul", "Softmax", "Transpose"]
    (mul,) = (node for node in nodes if node.op_type == "Mul")
    assert next(node for node in nodes if node.op_type == "MatMul").input[0] == mul.output[0]


def test_what_is_read_elsewhere_is_not_rescaled() -> None:
    scores = "a = Div (x, four)\nn = Neg (a)\nq = MatMul (a, k)\nm = Add (q, q)\np = Mul (m, s)"
    nodes = fused_alike(ATTENTION.format(scores, "p").replace("(w1, x)", "(w1, n)"))
    assert {"Div", "Mul"} <= {node.op_type for node in nodes}


def test_a_factor_of_one_goes() -> None:
    nodes = fused_alike(ATTENTION.format("a = Mul (x, s)\nq = MatMul (a, k)\np = Mul (q, four)", "p"))
    assert "Mul" not in {node.op_type for node in nodes}
