"""Where the channels of a tensor lie, followed through operators that move data.

A layout says of each axis which factors make it up, outermost first: the channels are one of them, the
others are sizes. So a Reshape that merges the channels with something else, and a later one that parts them
again, is followed too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT

CHANNELS = -1  # in the place of their number
Layout = tuple[tuple[int, ...], ...]
MOVES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose"})  # each value once
# These take, repeat or put beside each other along some axes, which the channels must not be on.
SELECTING = (DATA_MOVEMENT - MOVES - {"DepthToSpace", "SpaceToDepth"}) | {"ReduceMean"}


def on_axis(shape: Sequence[int | str], axis: int) -> Layout | None:
    """The channels alone on an axis; None where a size is not known."""
    if not all(isinstance(size, int) for size in shape) or not -len(shape) <= axis < len(shape):
        return None
    at = axis % len(shape)
    return tuple((CHANNELS,) if i == at else (int(size),) for i, size in enumerate(shape))


def channel_axis_of(layout: Layout) -> int | None:
    """The axis that holds the channels and nothing else, from the end; None where there is none."""
    for axis, factors in enumerate(layout):
        if CHANNELS in factors:
            alone = all(factor in (1, CHANNELS) for factor in factors)
            return axis - len(layout) if alone else None
    return None


def moved(
    graph: Graph, shapes: Shapes, node: NodeProto, layout: Layout, channels: int, to: str, *, back: bool
) -> Layout | None:
    """The layout of `to`, on the other side of an operator that moves data; None where the channels are lost.

    Args:
        layout: of what the operator reads, or of what it makes where `back`.
        channels: how many there are.
        to: an output of the operator, or an input where `back`.
    """
    shape = shapes.get(to, ())
    if not all(isinstance(size, int) for size in shape):
        return None
    sizes = [int(size) for size in shape]
    if node.op_type == "Transpose":
        order = attribute(node, "perm") or list(range(len(layout)))[::-1]
        order = [order.index(axis) for axis in range(len(order))] if back else order
        return tuple(layout[axis] for axis in order)
    if node.op_type in MOVES:
        return _regrouped([factor for axis in layout for factor in axis], sizes, channels)
    if node.op_type in SELECTING:
        return _beside(graph, shapes, node, layout, sizes, channels)
    return None


def _regrouped(factors: list[int], sizes: list[int], channels: int) -> Layout | None:
    """The same factors in other groups: of these products, some of them parted."""
    left = [factor for factor in factors if factor != 1][::-1]
    groups = []
    for size in sizes:
        group, need = [], size
        while need > 1:
            if not left:
                return None
            factor = left.pop()
            number = channels if factor == CHANNELS else factor
            if need % number == 0:
                group.append(factor)
                need //= number
            elif factor != CHANNELS and number % need == 0:
                group.append(need)
                left.append(number // need)
                need = 1
            else:
                return None
        groups.append(tuple(group))
    return None if left else tuple(groups)


def _beside(
    graph: Graph, shapes: Shapes, node: NodeProto, layout: Layout, sizes: list[int], channels: int
) -> Layout | None:
    """Past an operator that leaves the channels' axis as it is: found by its place from the end."""
    axis = channel_axis_of(layout)
    if axis is None or (node.op_type == "Pad" and _fill(graph, node)):
        return None
    data = shapes.get(node.input[0], ())
    touched = _touched(graph, node, len(data))
    if touched is None or len(data) + axis in touched:
        return None
    if node.op_type in ("Gather", "ReduceMean") and len(shapes.get(node.output[0], ())) != len(data):
        return _renumbered(layout, sizes, touched, len(data))
    found = on_axis(sizes, axis) if -axis <= len(sizes) else None
    return found if found is not None and sizes[axis] == channels else None


def _renumbered(layout: Layout, sizes: list[int], touched: set[int], rank: int) -> Layout | None:
    """Where axes disappear (or, on the way back, are there again)."""
    kept = [axis for axis in range(rank) if axis not in touched]
    if len(layout) == rank:  # forth
        return tuple(layout[axis] for axis in kept)
    if len(layout) != len(kept) or len(sizes) != rank:
        return None
    places = dict(zip(kept, layout, strict=True))
    return tuple(places.get(axis, (sizes[axis],)) for axis in range(rank))


def _touched(graph: Graph, node: NodeProto, rank: int) -> set[int] | None:
    """Axes of its input along which an operator takes, repeats, adds or pads; None where it is not known."""
    kind = node.op_type
    if kind in ("Gather", "Concat", "Split"):
        taken = graph.constants.get(node.input[1]) if kind == "Gather" else np.zeros(1)
        if taken is None or taken.ndim > 1:
            return None
        return {attribute(node, "axis", 0) % rank}
    if kind == "Expand":
        return set()  # by the sizes, which the caller compares
    position = {"ReduceMean": 1, "Slice": 3, "Pad": 3}.get(kind)
    if position is not None and len(node.input) > position and node.input[position]:
        axes = graph.constants.get(node.input[position])
        return None if axes is None else {int(axis) % rank for axis in axes.reshape(-1)}
    if kind == "ReduceMean":
        axes = attribute(node, "axes")
        return None if axes is None else {axis % rank for axis in axes}
    if kind == "Pad":
        widths = graph.constants.get(node.input[1])
        return None if widths is None else {i for i in range(rank) if widths[i] or widths[i + rank]}
    if kind == "Slice":
        starts = graph.constants.get(node.input[1])
        return None if starts is None else set(range(len(starts)))
    if kind == "Tile":
        repeats = graph.constants.get(node.input[1])
        return None if repeats is None else {i for i, repeat in enumerate(repeats) if repeat != 1}
    return None


def _fill(graph: Graph, pad: NodeProto) -> bool:
    """Whether a Pad puts something else than zeros; another value would have to be rotated too."""
    if attribute(pad, "mode", b"constant") != b"constant":
        return True
    if len(pad.input) < 3 or not pad.input[2]:
        return False
    fill = graph.constants.get(pad.input[2])
    return fill is None or math.prod(fill.shape or (1,)) != 1 or bool(fill.any())
