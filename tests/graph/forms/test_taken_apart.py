"""Softmax and LayerNorm as exporters of JAX and TensorFlow take them apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tiny_models import random_images, run_all, written

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise

CONSTANTS = {
    "epsilon": np.float32(1e-3), "gamma": np.linspace(0.5, 2, 8, dtype=np.float32),
    "beta": np.linspace(-1, 1, 8, dtype=np.float32), "one": np.float32(1), "nought": np.float32(0),
    "two": np.float32(2), "eighth": np.float32(0.125), "inverse_root": np.float32(-0.5),
    "w": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), "last": np.array([-1]),
    "middle": np.array([1]),
}  # fmt: skip
MEAN = "mean = ReduceMean <axes = [-1]> (x) "
DEVIATION = "d = Add (variance, epsilon) root = Sqrt (d) r = Reciprocal (root) "
FAST = (
    "xx = Mul (x, x) squares = ReduceMean <axes = [-1]> (xx) mm = Mul (mean, mean) "
    "difference = Sub (squares, mm) "
)
SLOW = "c = Sub (x, mean) cc = Mul (c, c) variance = ReduceMean <axes = [-1]> (cc) "
NORMS = {
    "flax": MEAN + FAST + "variance = Max (nought, difference) e = Sub (x, mean) " + DEVIATION
    + "s = Mul (r, gamma) z = Mul (e, s) t = Add (z, beta) ",
    "flax, never cut": MEAN + FAST + "variance = Identity (difference) e = Sub (x, mean) " + DEVIATION
    + "z = Mul (e, r) g = Mul (z, gamma) t = Add (g, beta) ",
    "keras": MEAN + SLOW + DEVIATION
    + "s = Mul (gamma, r) a = Mul (x, s) ms = Mul (mean, s) b = Sub (beta, ms) t = Add (a, b) ",
    "keras, fast": MEAN + FAST + "variance = Relu (difference) " + DEVIATION
    + "s = Mul (r, gamma) a = Mul (s, x) ms = Mul (s, mean) b = Sub (beta, ms) t = Add (b, a) ",
    "keras, no scale": MEAN + SLOW + DEVIATION
    + "a = Mul (x, r) mr = Mul (mean, r) b = Sub (beta, mr) t = Add (a, b) ",
    "mean and variance": MEAN + "c = Sub (x, mean) again = ReduceMean <axes = [-1]> (x) o = Sub (x, again) "
    "oo = Mul (o, o) variance = ReduceMean <axes = [-1]> (oo) d = Add (variance, epsilon) root = Sqrt (d) "
    "z = Div (c, root) g = Mul (z, gamma) t = Add (g, beta) ",
    "scale before the division": MEAN + SLOW + "d = Add (variance, epsilon) root = Sqrt (d) "
    "g = Mul (gamma, c) n = Div (g, root) t = Add (n, beta) ",
    "axis put back": "flat = ReduceMean <axes = [2], keepdims = 0> (x) mean = Unsqueeze (flat, last) "
    + SLOW.replace("ReduceMean <axes = [-1]> (cc)", "Identity (v)").replace(
        "variance =", "f = ReduceMean <axes = [-1], keepdims = 0> (cc) v = Unsqueeze (f, last) variance ="
    ) + DEVIATION + "z = Mul (c, r) g = Mul (z, gamma) t = Add (g, beta) ",
    "power": MEAN + SLOW + "d = Add (variance, epsilon) r = Pow (d, inverse_root) "
    "z = Mul (c, r) g = Mul (z, gamma) t = Add (g, beta) ",
    "sums": "total = ReduceSum (x, last) mean = Mul (total, eighth) c = Sub (x, mean) cc = Pow (c, two) "
    "whole = ReduceSum (cc, last) variance = Mul (eighth, whole) " + DEVIATION
    + "z = Mul (c, r) g = Mul (z, gamma) t = Add (g, beta) ",
}  # fmt: skip
SOFTMAXES = {
    "shifted": "m = ReduceMax <axes = [-1]> (x) c = Sub (x, m) e = Exp (c) s = ReduceSum (e, last) "
    "t = Div (e, s) ",
    "as it is": "e = Exp (x) s = ReduceSum (e, last) t = Div (e, s) ",
    "reciprocal": "e = Exp (x) s = ReduceSum (e, last) r = Reciprocal (s) t = Mul (r, e) ",
    "middle": "m = ReduceMax <axes = [1]> (x) c = Sub (x, m) e = Exp (c) s = ReduceSum (e, middle) "
    "t = Div (e, s) ",
    "logarithm of a sum": "s = ReduceLogSumExp <axes = [-1]> (x) l = Sub (x, s) t = Exp (l) ",
    "logarithm": "l = LogSoftmax <axis = 2> (x) t = Exp (l) ",
}  # fmt: skip
NEITHER = {
    "another axis": "e = Exp (x) s = ReduceSum (e, middle) m = ReduceMax <axes = [-1]> (x) y = Div (m, s)",
    "one more": "e = Exp (x) s = ReduceSum (e, last) more = Add (s, one) y = Div (e, more)",
    "another's sum": "e = Exp (x) n = Neg (x) f = Exp (n) s = ReduceSum (f, last) y = Div (e, s)",
    "another's mean": MEAN + "n = Abs (x) other = ReduceMean <axes = [-1]> (n) xx = Mul (x, x) "
    "squares = ReduceMean <axes = [-1]> (xx) mm = Mul (other, other) variance = Sub (squares, mm) "
    "c = Sub (x, mean) " + DEVIATION + "y = Mul (c, r)",
    "a sum": "total = ReduceSum (x, last) mean = Mul (total, two) y = Sub (x, mean)",
}
X = random_images(3, 4, 8)


def types(body: str) -> list[str]:
    """Of the fused graph, which gives what the file gives."""
    model = written(body, {name: value for name, value in CONSTANTS.items() if name in body})
    fused, _ = fuse(normalise(model))
    np.testing.assert_allclose(run_all(fused, X)[0], run_all(model, X)[0], rtol=0, atol=1e-5)
    return [node.op_type for node in fused.graph.node]


@pytest.mark.parametrize("case", NORMS)
def test_one_norm(case: str) -> None:
    assert types(NORMS[case] + "y = MatMul (t, w)") == ["LayerNormalization", "MatMul"]


@pytest.mark.parametrize(
    "after", ["s = Mul (n, gamma) t = Add (beta, s)", "t = Mul (gamma, n)", "t = Add (n, beta)"]
)
def test_a_norm_without_parameters_takes_those_that_follow(after: str) -> None:
    parameters = {"ones": np.ones(8, np.float32), "noughts": np.zeros(8, np.float32)}
    body = f"n = LayerNormalization <axis = -1> (x, ones, noughts) {after} y = MatMul (t, w)"
    made = written("y = MatMul (x, w)", {**CONSTANTS, **parameters})
    made.opset_import[0].version = 17
    made.graph.ClearField("node")
    made.graph.node.extend(
        onnx.parser.parse_graph(f"g (float[b, 4, 8] x) => (float[b, 4, 8] y) {{ {body} }}").node
    )
    fused, _ = fuse(normalise(made))
    np.testing.assert_allclose(run_all(fused, X)[0], run_all(made, X)[0], rtol=0, atol=1e-5)
    assert [node.op_type for node in fused.graph.node] == ["LayerNormalization", "MatMul"]


@pytest.mark.parametrize("case", SOFTMAXES)
def test_one_softmax(case: str) -> None:
    assert types(SOFTMAXES[case] + "y = MatMul (t, w)") == ["Softmax", "MatMul"]


@pytest.mark.parametrize("case", NEITHER)
def test_what_is_neither(case: str) -> None:
    assert not {"LayerNormalization", "Softmax"}.intersection(types(NEITHER[case]))
