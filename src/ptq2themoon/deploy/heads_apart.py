"""Queries, keys and values cut apart without an axis of their own.

Exporters give the three an axis, move it to the front, cut it, and take it away again, one operator for
each. Cut along the axis of the heads, they are what is wanted at once, with three operators fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, copied


class _Cut(NamedTuple):
    """Reshape, Transpose, Split along `axis`, and Squeezes of it."""

    reshape: NodeProto
    transpose: NodeProto
    split: NodeProto
    squeezes: list[NodeProto]
    axis: int


def cut_heads(graph: Graph) -> None:
    """Rewrite every such cut of the graph, in place; names of what the Squeezes make stay."""
    for node in [node for node in graph.nodes if node.op_type == "Split"]:
        cut = _cut(graph, node)
        if cut is not None:
            _rewrite(graph, cut)


def _cut(graph: Graph, split: NodeProto) -> _Cut | None:
    """What `split` is part of, if nothing else reads anything between."""
    transpose = graph.producer(split.input[0])
    reshape = None if transpose is None else graph.producer(transpose.input[0])
    if transpose is None or reshape is None or transpose.op_type != "Transpose":
        return None
    if graph.only_consumer(reshape, "Transpose") is None or graph.only_consumer(transpose, "Split") is None:
        return None
    if reshape.op_type != "Reshape" or reshape.input[1] not in graph.constants:
        return None
    rank = len(attribute(transpose, "perm", []))
    if rank == 0:  # without it the axes are reversed
        return None
    axis = attribute(split, "axis", 0) % rank
    squeezes = []
    for name in split.output:
        readers = graph.consumers(name)
        if len(readers) != 1 or name in graph.outputs or _squeezed(graph, readers[0], rank) != axis:
            return None
        squeezes.append(readers[0])
    return _Cut(reshape, transpose, split, squeezes, axis)


def _squeezed(graph: Graph, node: NodeProto, rank: int) -> int | None:
    """The one axis that a Squeeze takes away."""
    axes = graph.constants.get(node.input[1]) if node.op_type == "Squeeze" and len(node.input) > 1 else None
    return int(axes.item()) % rank if axes is not None and axes.size == 1 else None


def _rewrite(graph: Graph, cut: _Cut) -> None:
    """Join the axis with the one behind it in the layer's output, and cut along that."""
    perm = attribute(cut.transpose, "perm")
    own, target = perm[cut.axis], graph.constants[cut.reshape.input[1]]
    if len(target) < own + 2 or (target[own:] <= 0).any():  # 0 stands for the size at that place
        return
    parts, heads = (int(n) for n in target[own : own + 2])
    order = [axis for axis in perm if axis != own]
    joined = np.concatenate([target[:own], [parts * heads], target[own + 2 :]]).astype(np.int64)
    reshape, transpose, split = (copied(node) for node in (cut.reshape, cut.transpose, cut.split))
    stem = cut.reshape.output[0]
    reshape.input[1] = graph.add_constant(f"{stem}/heads", joined)
    transpose.ClearField("attribute")
    transpose.attribute.append(helper.make_attribute("perm", [a - (a > own) for a in order]))
    split.ClearField("attribute")
    split.attribute.append(helper.make_attribute("axis", order.index(own + 1)))
    sizes_each = graph.add_constant(f"{stem}/sizes", np.full(parts, heads, np.int64))
    split.input[:] = [transpose.output[0], sizes_each]
    split.output[:] = [squeeze.output[0] for squeeze in cut.squeezes]
    graph.replace(cut.squeezes, [])
    graph.replace([cut.reshape, cut.transpose, cut.split], [reshape, transpose, split])
