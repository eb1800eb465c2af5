"""Fused operators of newer ONNX and of ONNX Runtime's optimisers, written out: the same values."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from tiny_models import run_all

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.roles import find_roles
from ptq2themoon.vocabulary.errors import UserError

WIDTH, TOKENS = 8, 6
RNG = np.random.default_rng(0)
VALUES = {
    name: RNG.standard_normal(shape).astype(np.float32) / 2
    for name, shape in {
        "w": (WIDTH, WIDTH), "w2": (WIDTH, WIDTH), "w3": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH),
        "few": (WIDTH, 4), "few2": (WIDTH, 4),
        "packed": (WIDTH, 3 * WIDTH), "packed_bias": (3 * WIDTH,), "b": (WIDTH,), "gamma": (WIDTH,),
        "six": (TOKENS,), "six2": (TOKENS,),
        "beta": (WIDTH,), "bias": (1, 2, TOKENS, TOKENS),
    }.items()
}  # fmt: skip
VALUES["heads"], VALUES["whole"] = np.array([0, 0, 2, -1]), np.array([0, 0, -1])
VALUES["truths"] = np.tri(TOKENS, dtype=bool)
LAYERS = "q = MatMul (x, w) k = MatMul (x, w2) v = MatMul (x, w3) "
FEW = "q = MatMul (x, w) k = MatMul (x, few) v = MatMul (x, few2) "  # keys of fewer heads
PROJECTED = " y = MatMul (c, wo)"


def model(body: str, opset: int, shape: str = f"batch, {TOKENS}, {WIDTH}", out: str = "y") -> onnx.ModelProto:
    domains = f'"": {opset}, "com.microsoft": 1'
    text = (
        f"<ir_version: 10, opset_import: [{domains}]> g (float[{shape}] x) => "
        f"(float[{re.sub('[0-9]+', 'n', shape)}] {out}) {{ {body} }}"
    )
    found = onnx.parser.parse_model(text)
    found.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in VALUES.items()
        if re.search(rf"\b{name}\b", body)
    )
    return found


def assert_same(made: onnx.ModelProto, shape: tuple[int, ...] = (3, TOKENS, WIDTH)) -> onnx.ModelProto:
    """The fused graph, which has ONNX's own operators and gives what ONNX Runtime gives for the file."""
    fused, _ = fuse(normalise(made))
    assert {node.domain for node in fused.graph.node} <= {"", "ptq2themoon"}
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(run_all(fused, x)[0], run_all(made, x)[0], rtol=0, atol=1e-5)
    return fused


ATTENTION = {
    "onnx": (23, LAYERS + "c = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)"),
    "onnx, scaled": (23, LAYERS + "c = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.3> (q, k, v)"),
    "onnx, bias": (23, LAYERS + "c = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v, bias)"),
    "onnx, by heads": (
        23,
        LAYERS + "qh = Reshape (q, heads) qt = Transpose <perm = [0, 2, 1, 3]> (qh) kh = Reshape (k, heads) "
        "kt = Transpose <perm = [0, 2, 1, 3]> (kh) vh = Reshape (v, heads) "
        "vt = Transpose <perm = [0, 2, 1, 3]> (vh) ct = Attention (qt, kt, vt, truths) "
        "cm = Transpose <perm = [0, 2, 1, 3]> (ct) c = Reshape (cm, whole)",
    ),
    "onnx, causal": (
        23, LAYERS + "c = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, v)"
    ),
    "onnx, bounded": (
        24, LAYERS + "c = Attention <q_num_heads = 2, kv_num_heads = 2, softcap = 0.5> (q, k, v, bias)"
    ),
    "onnx, shared keys": (23, FEW + "c = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)"),
    "onnx, one key": (24, FEW + "c = Attention <q_num_heads = 2, kv_num_heads = 1> (q, k, v)"),
    "runtime, causal": (
        17, "c = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, packed, packed_bias)"
    ),
    "runtime, apart, causal": (
        17, LAYERS + "c = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (q, k, v)"
    ),
    "runtime": (17, "c = com.microsoft.Attention <num_heads = 2> (x, packed, packed_bias)"),
    "runtime, bias": (17, "c = com.microsoft.Attention <num_heads = 2> (x, packed, packed_bias, , , bias)"),
    "runtime, apart": (17, LAYERS + "c = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)"),
    "runtime, apart, biases": (
        14,
        LAYERS + "c = com.microsoft.MultiHeadAttention <num_heads = 2, scale = 0.2> "
        "(q, k, v, packed_bias, , bias)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_found(case: str) -> None:
    opset, body = ATTENTION[case]
    fused = assert_same(model(body + PROJECTED, opset))
    roles = Counter(operator.role for operator in find_roles(fused))
    layers = {"qkv": 1} if "packed," in body else {"q": 1, "k": 1, "v": 1}
    expected = {**layers, **dict.fromkeys(("attn_scores", "softmax", "attn_context", "proj"), 1)}
    assert {role: roles[role] for role in expected} == expected


OTHERS = {
    "rms norm": (23, "y = RMSNormalization <epsilon = 0.001> (x, gamma)", {"RMSNormalization": 1}),
    "group norm": (
        21,
        "y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, six, six2)",
        {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1},
    ),
    "swish": (24, "y = Swish (x)", {"Sigmoid": 1, "Mul": 1}),
    "swish, steep": (24, "y = Swish <alpha = 2.0> (x)", {"Sigmoid": 1, "Mul": 2}),
    "sum": (17, "y = Sum (x, x, gamma)", {"Add": 2}),
    "mean": (13, "y = Mean (x, gamma)", {"Add": 1, "Mul": 1}),
    "selu": (17, "y = Selu (x)", {"Where": 1, "Less": 1, "Exp": 1, "Mul": 3, "Sub": 1}),
    "mean and variance": (
        17,
        "y = MeanVarianceNormalization <axes = [2]> (x)",
        {"ReduceMean": 2, "Pow": 1, "Sub": 1, "Sqrt": 1, "Add": 1, "Div": 1},
    ),
    "type of another": (17, "c = CastLike (b, x) y = Add (x, c)", {"Add": 1}),
    "gelu": (17, "y = com.microsoft.Gelu (x)", {"Gelu": 1}),
    "bias gelu": (17, "y = com.microsoft.BiasGelu (x, b)", {"Gelu": 1, "Add": 1}),
    "fast gelu": (13, "y = com.microsoft.FastGelu (x)", {"Gelu": 1}),
    "fast gelu, bias": (13, "y = com.microsoft.FastGelu (x, b)", {"Gelu": 1, "Add": 1}),
    "quick gelu": (13, "y = com.microsoft.QuickGelu (x)", {"Sigmoid": 1, "Mul": 2}),
    "skip norm": (
        17,
        "y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, x, gamma, beta, b)",
        {"LayerNormalization": 1, "Add": 2},
    ),
    "skip norm, its sum": (
        17,
        "n, , , s = com.microsoft.SkipLayerNormalization (x, x, gamma, beta) y = Add (n, s)",
        {"LayerNormalization": 1, "Add": 2},
    ),
    "skip rms norm": (
        17,
        "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, x, gamma)",
        {"RMSNormalization": 1, "Add": 1},
    ),
    "skip norm after a layer": (
        17,
        "p = MatMul (x, w) n, , , s = com.microsoft.SkipLayerNormalization (x, p, gamma, beta, b) "
        "y = Add (n, s)",
        {"LayerNormalization": 1, "PPQBiasFusedMatMul": 1, "Add": 2},
    ),
    "fused product": (
        17,
        "y = com.microsoft.FusedMatMul <alpha = 0.25, transB = 1> (x, x)",
        {"MatMul": 1, "Mul": 1, "Transpose": 1},
    ),
    "products in a row": (
        17,
        "p = com.microsoft.FusedMatMul <transB = 1> (x, x) r = com.microsoft.FusedMatMul <transA = 1> (p, x) "
        "y = Add (r, x)",
        {"MatMul": 2, "Transpose": 2, "Add": 1},
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_operators(case: str) -> None:
    opset, body, expected = OTHERS[case]
    fused = assert_same(model(body, opset))
    assert Counter(node.op_type for node in fused.graph.node if node.op_type != "Identity") == expected


def test_a_convolution_with_its_activation() -> None:
    kernel = numpy_helper.from_array(RNG.standard_normal((4, 3, 2, 2)).astype(np.float32), "kernel")
    body = 'y = com.microsoft.FusedConv <activation = "Relu", strides = [2, 2]> (x, kernel)'
    made = model(body, 17, "batch, 3, 4, 4")
    made.graph.initializer.append(kernel)
    fused = assert_same(made, (2, 3, 4, 4))
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (
            "y = com.microsoft.Attention <num_heads = 2, do_rotary = 1> (x, packed, packed_bias)",
            "operator 'y' (Attention): attribute 'do_rotary' is not known here; "
            "export the model with plain operators",
        ),
        (
            "y = com.microsoft.Inverse (x)",
            "operator 'y' (Inverse): is of domain 'com.microsoft', not of ONNX; it was fused for "
            "ONNX Runtime; give the file from before that optimisation",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(body: str, what: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(what)}$"):
        normalise(model(body, 17))
