"""Operators that a newer ONNX or a runtime fused, as the plain ones that they stand for.

Those of ONNX after the opset of fused graphs by https://onnx.ai/onnx/operators, unless ONNX brings its own
definition; those that ONNX Runtime's optimisers make (domain com.microsoft) by
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import attribute
from ptq2themoon.graph.forms.fused_attention import (
    multi_head_attention,
    onnx_attention,
    runtime_attention,
)
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
    terms = list(node.input[:2])
    if writer.optional(bias):  # of the layer, where one gives a term
        layer = next((i for i, name in enumerate(terms) if _is_product(writer, name)), 1)
        terms[layer] = writer.make("Add", terms[layer], node.input[bias])
    total = writer.make("Add", *terms)
    beta = None if simplified else writer.optional(3)
    _norm(writer, total, node.input[2], beta, attribute(node, "epsilon", 1e-12))
    if writer.wanted(3):
        writer.give(total, 3)


def _is_product(writer: PlainWriter, tensor: str) -> bool:
    maker = writer.graph.producer(tensor)
    return maker is not None and maker.op_type == "MatMul"


def _group_norm(writer: PlainWriter, node: NodeProto) -> None:
    """GroupNormalization, as torch writes it before there is one: of groups, then a scale and a shift."""
    x, scale, shift = node.input
    rank, groups = len(writer.shapes[x]), attribute(node, "num_groups")
    ones, zeros = (writer.number(np.full(groups, value), np.float32) for value in (1, 0))
    whole = writer.make("Reshape", x, writer.number([0, groups, -1]))
    epsilon = attribute(node, "epsilon", 1e-5)
    unit = writer.make("InstanceNormalization", whole, ones, zeros, epsilon=epsilon)
    back = writer.make("Reshape", unit, writer.make("Shape", x))
    along = writer.number([-1, *[1] * (rank - 2)])
    scaled = writer.make("Mul", back, writer.make("Reshape", scale, along))
    writer.give(writer.make("Add", scaled, writer.make("Reshape", shift, along)))


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


def _rms_norm(writer: PlainWriter, node: NodeProto) -> None:
    if attribute(node, "axis", -1) not in (-1, len(writer.shapes[node.input[0]]) - 1):
        raise UnknownForm("a norm over several dimensions is not known here")
    _norm(writer, node.input[0], node.input[1], None, attribute(node, "epsilon", 1e-5))


def _swish(writer: PlainWriter, node: NodeProto, usual: float = 1.0) -> None:
    x, alpha = node.input[0], attribute(node, "alpha", usual)
    steep = x if alpha == 1 else writer.make("Mul", x, writer.real(alpha))
    writer.give(writer.make("Mul", x, writer.make("Sigmoid", steep)))


def _sum(writer: PlainWriter, node: NodeProto, share: float = 1.0) -> None:
    total = writer.make("Identity", node.input[0])
    for term in node.input[1:]:
        total = writer.make("Add", total, term)
    writer.give(total if share == 1 else writer.make("Mul", total, writer.real(share)))


PLAIN_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")
NEED_RANKS = (
    "Attention",
    "FusedMatMul",
    "GroupNormalization",
    "MultiHeadAttention",
    "RMSNormalization",
    "TransposeMatMul",
)
NEWER: dict[str, Write] = {
    "Attention": onnx_attention,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "Swish": _swish,
}
TERMS: dict[str, Write] = {
    "Mean": lambda writer, node: _sum(writer, node, 1 / len(node.input)),
    "Sum": _sum,
}
RUNTIME: dict[str, Write] = {
    "Attention": runtime_attention,
    "BiasGelu": _gelu,
    "FastGelu": lambda writer, node: _gelu(writer, node, tanh=True),
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MultiHeadAttention": multi_head_attention,
    "QuickGelu": lambda writer, node: _swish(writer, node, 1.702),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": lambda writer, node: _skip_norm(writer, node, simplified=True),
    "TransposeMatMul": _fused_matmul,
}
