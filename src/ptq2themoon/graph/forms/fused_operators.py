"""Operators that a newer ONNX or a runtime fused, as the plain ones that they stand for.

Those of ONNX after the opset of fused graphs by https://onnx.ai/onnx/operators, unless ONNX brings its own
definition; those that ONNX Runtime's optimisers make (domain com.microsoft) by
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import attribute
from ptq2themoon.graph.forms.plain_writer import PlainWriter, UnknownForm

Write = Callable[[PlainWriter, NodeProto], None]


def _gelu(writer: PlainWriter, node: NodeProto, tanh: bool = False) -> None:
    """Gelu, FastGelu, BiasGelu: with a bias or without."""
    x = writer.make("Add", *node.input) if writer.optional(1) else node.input[0]
    writer.give(writer.make("Gelu", x, approximate="tanh" if tanh else "none"))


def _skip_norm(writer: PlainWriter, node: NodeProto, simplified: bool = False) -> None:
    """SkipLayerNormalization, SkipSimplifiedLayerNormalization: of a sum, which may be an output too."""
    bias = 3 if simplified else 4
    if writer.wanted(1) or writer.wanted(2):
        raise UnknownForm("a mean or deviation as an output is not known here")
    total = writer.make("Add", node.input[0], node.input[1])
    if writer.optional(bias):
        total = writer.make("Add", total, node.input[bias])
    beta = None if simplified else writer.optional(3)
    _norm(writer, total, node.input[2], beta, attribute(node, "epsilon", 1e-12))
    if writer.wanted(3):
        writer.give(total, 3)


def _norm(writer: PlainWriter, x: str, gamma: str, beta: str | None, epsilon: float) -> None:
    """LayerNorm, without a shift where `beta` is empty; RMSNorm where it is None."""
    if beta is not None:
        inputs = (x, gamma, beta) if beta else (x, gamma)
        writer.give(writer.make("LayerNormalization", *inputs, axis=-1, epsilon=epsilon))
        return
    square = writer.make("ReduceMean", writer.make("Pow", x, writer.real(2)), writer.number([-1]))
    length = writer.make("Sqrt", writer.make("Add", square, writer.real(epsilon)))
    writer.give(writer.make("Mul", writer.make("Div", x, length), gamma))


def _fused_matmul(writer: PlainWriter, node: NodeProto) -> None:
    writer.refuse({}, ("transBatchA", "transBatchB"))
    operands = []
    for name, key in zip(node.input[:2], ("transA", "transB"), strict=True):
        if attribute(node, key, 0):
            order = list(range(len(writer.shapes[name])))
            name = writer.make("Transpose", name, perm=[*order[:-2], order[-1], order[-2]])
        operands.append(name)
    product, factor = writer.make("MatMul", *operands), attribute(node, "alpha", 1.0)
    writer.give(product if factor == 1 else writer.make("Mul", product, writer.real(factor)))


def _activated(
    writer: PlainWriter, node: NodeProto, kind: str, given: dict[str, object], added: str = ""
) -> None:
    """FusedGemm, FusedConv: an operator with an activation after it."""
    inner = writer.make(kind, *node.input[:3], **given)
    inner = writer.make("Add", inner, added) if added else inner
    name = attribute(node, "activation", b"").decode()
    if name not in ("", *PLAIN_ACTIVATIONS):
        raise UnknownForm(f"activation {name!r} is not known here")
    alpha = attribute(node, "activation_alpha")
    more = {"alpha": alpha} if name == "LeakyRelu" and alpha is not None else {}
    writer.give(writer.make(name, inner, **more) if name else inner)


def _fused_gemm(writer: PlainWriter, node: NodeProto) -> None:
    given = {key: attribute(node, key) for key in ("alpha", "beta", "transA", "transB")}
    _activated(writer, node, "Gemm", {key: value for key, value in given.items() if value is not None})


def _fused_conv(writer: PlainWriter, node: NodeProto) -> None:
    keys = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    given = {key: attribute(node, key) for key in keys}
    if attribute(node, "activation_params"):
        raise UnknownForm("an activation with parameters is not known here")
    _activated(
        writer, node, "Conv", {k: v for k, v in given.items() if v is not None}, added=writer.optional(3)
    )


# Attention ----------------------------------------------------------------------------------------


def _attention(writer: PlainWriter, node: NodeProto) -> None:
    """Attention: the layer for queries, keys and values is in it."""
    writer.refuse(
        {3: "a mask of lengths", 4: "a past", 6: "a past"},
        ("unidirectional", "do_rotary", "past_present_share_buffer"),
    )
    if writer.wanted(1):
        raise UnknownForm("a present as an output is not known here")
    weight = writer.shapes.get(node.input[1], ())
    sizes = attribute(node, "qkv_hidden_sizes") or [int(weight[1]) // 3] * 3
    heads = attribute(node, "num_heads")
    made = writer.make("MatMul", node.input[0], node.input[1])
    made = writer.make("Add", made, node.input[2]) if writer.optional(2) else made
    query, key, value = writer.split(made, list(sizes))
    _attend(writer, node, query, key, value, writer.optional(5), sizes[0] // heads, heads)


def _multi_head_attention(writer: PlainWriter, node: NodeProto) -> None:
    """MultiHeadAttention: the layers come before it, their biases perhaps with it."""
    writer.refuse({4: "a mask of lengths", 6: "a past", 7: "a past", 8: "a past"}, ("unidirectional",))
    if writer.wanted(1) or writer.wanted(2):
        raise UnknownForm("a present as an output is not known here")
    query, key, value = (writer.optional(i) for i in range(3))
    ranks = [len(writer.shapes.get(name, ())) for name in (query, key, value) if name]
    if ranks != [3, 3, 3]:
        raise UnknownForm("queries, keys and values in one tensor or by heads are not known here")
    widths = [writer.shapes[name][-1] for name in (query, key, value)]
    if not all(isinstance(width, int) for width in widths):
        raise UnknownForm("the widths of what it reads are not known")
    sizes, heads = [int(width) for width in widths], attribute(node, "num_heads")
    if writer.optional(3):
        biases = writer.split(node.input[3], sizes)
        query, key, value = (
            writer.make("Add", name, bias) for name, bias in zip((query, key, value), biases, strict=True)
        )
    _attend(writer, node, query, key, value, writer.optional(5), sizes[0] // heads, heads)


def _onnx_attention(writer: PlainWriter, node: NodeProto) -> None:
    """Attention of ONNX: queries, keys and values [images, tokens, width], or by heads."""
    writer.refuse({4: "a past", 5: "a past", 6: "padding of keys"}, ("is_causal", "softcap"))
    if any(map(writer.wanted, (1, 2, 3))):
        raise UnknownForm("another output than the context is not known here")
    query, key, value = node.input[:3]
    shapes = [writer.shapes[name] for name in (query, key, value)]
    heads = [attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")]
    whole = [len(shape) == 3 for shape in shapes]
    if not all(whole):
        heads = [shape[1] if len(shape) == 4 else None for shape in shapes[:2]]
    size = shapes[0][-1]
    if (
        heads[0] != heads[1]
        or not isinstance(heads[0], int)
        or not isinstance(size, int)
        or len(set(whole)) > 1
    ):
        raise UnknownForm("fewer heads of keys than of queries are not known here")
    size = size // heads[0] if whole[0] else size
    _attend(writer, node, query, key, value, writer.optional(3), size, heads[0] if whole[0] else None)


def _attend(
    writer: PlainWriter,
    node: NodeProto,
    query: str,
    key: str,
    value: str,
    bias: str,
    size: int,
    heads: int | None,
) -> None:
    """What queries, keys and values give.

    Args:
        size: channels of a head.
        heads: of tensors [images, tokens, width]; None for tensors [images, heads, tokens, size].
    """
    if heads is not None:
        shape = writer.number([0, 0, heads, -1])
        query, key, value = (
            writer.make("Transpose", writer.make("Reshape", name, shape), perm=[0, 2, 1, 3])
            for name in (query, key, value)
        )
    turned = writer.make("Transpose", key, perm=[0, 1, 3, 2])
    scale = attribute(node, "scale", 0.0) or 1 / math.sqrt(size)
    scores = writer.make("Mul", writer.make("MatMul", query, turned), writer.real(scale))
    weights = writer.make("Softmax", _biased(writer, scores, bias), axis=-1)
    context = writer.make("MatMul", weights, value)
    if heads is not None:
        moved = writer.make("Transpose", context, perm=[0, 2, 1, 3])
        context = writer.make("Reshape", moved, writer.number([0, 0, -1]))
    writer.give(context)


def _biased(writer: PlainWriter, scores: str, bias: str) -> str:
    """Scores with what is added to them; a mask of truths says where they count."""
    value = writer.graph.constants.get(bias)
    if value is not None and value.dtype == bool:
        bias = writer.number(np.where(value, 0, -np.inf), np.float32)
    return writer.make("Add", scores, bias) if bias else scores


def _rms_norm(writer: PlainWriter, node: NodeProto) -> None:
    if attribute(node, "axis", -1) not in (-1, len(writer.shapes[node.input[0]]) - 1):
        raise UnknownForm("a norm over several dimensions is not known here")
    _norm(writer, node.input[0], node.input[1], None, attribute(node, "epsilon", 1e-5))


def _swish(writer: PlainWriter, node: NodeProto, usual: float = 1.0) -> None:
    x, alpha = node.input[0], attribute(node, "alpha", usual)
    steep = x if alpha == 1 else writer.make("Mul", x, writer.real(alpha))
    writer.give(writer.make("Mul", x, writer.make("Sigmoid", steep)))


PLAIN_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")
NEED_RANKS = ("Attention", "FusedMatMul", "MultiHeadAttention", "RMSNormalization", "TransposeMatMul")
NEWER: dict[str, Write] = {"Attention": _onnx_attention, "RMSNormalization": _rms_norm, "Swish": _swish}
RUNTIME: dict[str, Write] = {
    "Attention": _attention,
    "BiasGelu": _gelu,
    "FastGelu": lambda writer, node: _gelu(writer, node, tanh=True),
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": lambda writer, node: _swish(writer, node, 1.702),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": lambda writer, node: _skip_norm(writer, node, simplified=True),
    "TransposeMatMul": _fused_matmul,
}
