"""Attention that ONNX or ONNX Runtime has as one operator, as the plain ones that it stands for.

By the sources that `fused_operators` names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import attribute
from ptq2themoon.graph.forms.plain_writer import PlainWriter, UnknownForm


class _Form(NamedTuple):
    """How queries, keys and values lie.

    Attributes:
        heads: of queries.
        shared: how many heads of queries each head of keys and values serves.
        size: channels of a head.
        whole: [images, tokens, width], not [images, heads, tokens, size].
    """

    heads: int
    shared: int
    size: int
    whole: bool = True


def runtime_attention(writer: PlainWriter, node: NodeProto) -> None:
    """Attention: the layer for queries, keys and values is in it."""
    writer.refuse(
        {3: "a mask of lengths", 4: "a past", 6: "a past"}, ("do_rotary", "past_present_share_buffer")
    )
    if writer.wanted(1):
        raise UnknownForm("a present as an output is not known here")
    weight, tokens = writer.shapes.get(node.input[1], ()), writer.shapes.get(node.input[0], ("?", "?"))[1]
    sizes = attribute(node, "qkv_hidden_sizes") or [int(weight[1]) // 3] * 3
    heads = attribute(node, "num_heads")
    made = writer.make("MatMul", node.input[0], node.input[1])
    made = writer.make("Add", made, node.input[2]) if writer.optional(2) else made
    query, key, value = writer.split(made, list(sizes))
    form = _Form(heads, 1, sizes[0] // heads)
    _attend(writer, node, (query, key, value), form, [_later(writer, (tokens, tokens)), writer.optional(5)])


def multi_head_attention(writer: PlainWriter, node: NodeProto) -> None:
    """MultiHeadAttention: the layers come before it, their biases perhaps with it."""
    writer.refuse({4: "a mask of lengths", 6: "a past", 7: "a past", 8: "a past"})
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
    later = _later(writer, [writer.shapes[name][1] for name in (query, key)])
    if writer.optional(3):
        biases = writer.split(node.input[3], sizes)
        query, key, value = (
            writer.make("Add", name, bias) for name, bias in zip((query, key, value), biases, strict=True)
        )
    form = _Form(heads, 1, sizes[0] // heads)
    _attend(writer, node, (query, key, value), form, [later, writer.optional(5)])


def onnx_attention(writer: PlainWriter, node: NodeProto) -> None:
    """Attention of ONNX: queries, keys and values [images, tokens, width], or by heads."""
    writer.refuse({4: "a past", 5: "a past", 6: "padding of keys"})
    if any(map(writer.wanted, (1, 2, 3))):
        raise UnknownForm("another output than the context is not known here")
    query, key, value = node.input[:3]
    shapes = [writer.shapes[name] for name in (query, key, value)]
    heads = [attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")]
    whole = [len(shape) == 3 for shape in shapes]
    if not all(whole):
        heads = [shape[1] if len(shape) == 4 else None for shape in shapes[:2]]
    size = shapes[0][-1]
    known = all(isinstance(number, int) for number in (*heads, size)) and len(set(whole)) == 1
    if not known or heads[0] % heads[1]:
        raise UnknownForm("its numbers of heads are not known")
    size = int(size) // heads[0] if whole[0] else int(size)
    form = _Form(heads[0], heads[0] // heads[1], size, whole[0])
    later = _later(writer, [shape[-2] for shape in shapes[:2]])
    _attend(writer, node, (query, key, value), form, [later, writer.optional(3)])


def _attend(
    writer: PlainWriter, node: NodeProto, tensors: tuple[str, str, str], form: _Form, biases: list[str]
) -> None:
    """What queries, keys and values give.

    Args:
        biases: what is added to the scores; empty names are left out.
    """
    query, key, value = tensors
    if form.whole:
        parts = form.heads, form.heads // form.shared, form.heads // form.shared
        query, key, value = (
            writer.make(
                "Transpose", writer.make("Reshape", name, writer.number([0, 0, heads, -1])), perm=[0, 2, 1, 3]
            )
            for name, heads in zip(tensors, parts, strict=True)
        )
    if form.shared > 1:
        key, value = (_repeated(writer, name, form) for name in (key, value))
    turned = writer.make("Transpose", key, perm=[0, 1, 3, 2])
    scale = attribute(node, "scale", 0.0) or 1 / math.sqrt(form.size)
    scores = writer.make("Mul", writer.make("MatMul", query, turned), writer.real(scale))
    if cap := attribute(node, "softcap", 0.0):
        bounded = writer.make("Tanh", writer.make("Mul", scores, writer.real(1 / cap)))
        scores = writer.make("Mul", bounded, writer.real(cap))
    for bias in biases:
        scores = _biased(writer, scores, bias)
    weights = writer.make("Softmax", scores, axis=-1)
    context = writer.make("MatMul", weights, value)
    if form.whole:
        moved = writer.make("Transpose", context, perm=[0, 2, 1, 3])
        context = writer.make("Reshape", moved, writer.number([0, 0, -1]))
    writer.give(context)


def _repeated(writer: PlainWriter, tensor: str, form: _Form) -> str:
    """Each head of [images, heads, tokens, size] as often as heads of queries share it."""
    apart = writer.make("Unsqueeze", tensor, writer.number([2]))
    each = writer.make("Expand", apart, writer.number([1, 1, form.shared, 1, 1]))
    return writer.make("Reshape", each, writer.number([0, form.heads, -1, form.size]))


def _later(writer: PlainWriter, tokens: Sequence[int | str]) -> str:
    """What hides from each of the tokens those after it, where the operator does; else empty.

    Args:
        tokens: numbers of queries and of keys.
    """
    if not any(attribute(writer.node, name, 0) for name in ("is_causal", "unidirectional")):
        return ""
    first, second = tokens
    if not isinstance(first, int) or first != second:
        raise UnknownForm("a causal mask is known only where there are as many keys as queries")
    return writer.number(np.triu(np.full((first, first), -np.inf), 1), np.float32)


def _biased(writer: PlainWriter, scores: str, bias: str) -> str:
    """Scores with what is added to them; a mask of truths says where they count."""
    value = writer.graph.constants.get(bias)
    if value is not None and value.dtype == bool:
        bias = writer.number(np.where(value, 0, -np.inf), np.float32)
    return writer.make("Add", scores, bias) if bias else scores
