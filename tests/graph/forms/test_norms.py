"""LayerNorm and RMSNorm taken apart, without their scale, shift or both."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from tiny_models import run_all, written

from ptq2themoon.graph.forms.fuse import count_fused, fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.quantize.simulation import SimulatedModel

CONSTANTS = {
    "two": np.float32(2), "epsilon": np.float32(1e-3), "gamma": np.linspace(0.5, 2, 8, dtype=np.float32),
    "beta": np.linspace(-1, 1, 8, dtype=np.float32), "one": np.float32(1),
    "w": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8),
}  # fmt: skip
CENTRED = "mean = ReduceMean <axes = [-1]> (x) c = Sub (x, mean) "
LENGTH = (
    "square = Pow (IN, two) variance = ReduceMean <axes = [-1]> (square) shifted = Add (variance, epsilon) "
    "root = Sqrt (shifted) "
)
DIVIDED = {
    "quotient": "n = Div (IN, root) ",
    "reciprocal": "inverse = Reciprocal (root) n = Mul (inverse, IN) ",
    "one over": "inverse = Div (one, root) n = Mul (IN, inverse) ",
}
AFFINE = {
    "whole": "s = Mul (n, gamma) t = Add (s, beta) ",
    "scale": "t = Mul (gamma, n) ",
    "nothing": "t = Identity (n) ",
}


def fused_of(body: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    made = written(body, used)
    fused, _ = fuse(normalise(made))
    return made, fused


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("divided", DIVIDED)
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_one_operator(kind: str, divided: str, affine: str) -> None:
    """A shift that follows an RMSNorm stays an operator of its own."""
    of = "c" if kind == "LayerNorm" else "x"
    body = (CENTRED if kind == "LayerNorm" else "") + (LENGTH + DIVIDED[divided]).replace("IN", of)
    made, fused = fused_of(body + AFFINE[affine] + "y = MatMul (t, w)")
    counts = count_fused(fused)
    assert counts[kind] == 1
    left = {"MatMul"} | ({"Add"} if (kind, affine) == ("RMSNorm", "whole") else set())
    norm = "LayerNormalization" if kind == "LayerNorm" else "RMSNormalization"
    assert {node.op_type for node in fused.graph.node} == {norm, *left}
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    (expected,) = run_all(made, x)
    np.testing.assert_allclose(run_all(fused, x)[0], expected, rtol=0, atol=1e-5)
    in_ppq = SimulatedModel(fused, "cpu")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(in_ppq, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        LENGTH.replace("IN", "x") + "y = Div (w2, root)",  # another tensor's length
        "square = Pow (x, two) variance = ReduceMean <axes = [1]> (square) shifted = Add (variance, epsilon) "
        "root = Sqrt (shifted) y = Div (x, root)",
    ],
)
def test_what_is_no_norm(body: str) -> None:
    body = body.replace("w2", "x2") if "w2" not in body else "x2 = Mul (x, two) " + body.replace("w2", "x2")
    _, fused = fused_of(body)
    assert "RMSNorm" not in count_fused(fused)


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (
            "l = ReduceL2 <axes = [-1]> (x) b = Max (l, epsilon) u = Div (x, b) s = Mul (u, two) "
            "t = Mul (s, gamma)",
            1,
        ),
        ("l = ReduceL2 <axes = [2]> (x) u = Div (x, l) t = Mul (gamma, u)", 1),
        (
            "l = ReduceL2 <axes = [-1]> (x) u = Div (x, l) t = Mul (u, two)",
            0,
        ),  # a unit vector, as of attention
        ("l = ReduceL2 <axes = [1]> (x) u = Div (x, l) t = Mul (u, gamma)", 0),
    ],
)
def test_unit_vectors_with_a_gain(body: str, kinds: int) -> None:
    """As vit-pytorch writes RMSNorm."""
    made, fused = fused_of(f"{body} y = MatMul (t, w)")
    assert count_fused(fused).get("RMSNorm", 0) == kinds
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(run_all(fused, x)[0], run_all(made, x)[0], rtol=0, atol=1e-5)
