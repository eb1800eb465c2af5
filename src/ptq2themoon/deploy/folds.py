"""Where the scales of channel-wise activations can go, so that one integer scale is left.

A scale for each channel of a layer's input lies on the reduction axis of its product, where no integer
kernel can take it out of the sum. So the activations are divided by their scales, and the weights'
input channels multiplied by them, which are then quantized again per output channel. After a LayerNorm
the division costs nothing: gamma and beta carry it. Elsewhere it is one multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.graph.editing import Graph, Shapes, attribute

# Those that can leave the last axis as it is; each is looked at.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Concat", "Pad"})


def layernorm_folds(graph: Graph, shapes: Shapes, wanted: Mapping[str, Grid]) -> dict[str, Grid]:
    """LayerNorms, by name, that can be divided by the scales of all that reads them.

    Args:
        wanted: the per-channel grid of each layer's input, by the layer's name.
    """
    found = {}
    for node in graph.nodes:
        if node.op_type != "LayerNormalization" or attribute(node, "axis", -1) != -1:
            continue
        if not all(name in graph.constants for name in node.input[1:]):
            continue
        readers = _readers(graph, shapes, node)
        grids = [wanted.get(reader.name) for reader in readers or ()]
        if grids and grids[0] is not None and all(g is not None and g.same(grids[0]) for g in grids):
            found[node.name] = grids[0]
    return found


def _readers(graph: Graph, shapes: Shapes, norm: NodeProto) -> list[NodeProto] | None:
    """What reads the LayerNorm's output as its first input, past operators that keep its last axis.

    None where something else does.
    """
    carried, readers = {norm.output[0]}, []
    for node in graph.nodes:
        read = [name for name in node.input if name in carried]
        if not read or node.op_type == "Shape":
            continue
        if _keeps_channels(graph, shapes, node, carried):
            carried.update(node.output)
        elif read == [node.input[0]]:
            readers.append(node)
        else:
            return None
    return None if carried.intersection(graph.outputs) else readers


def _keeps_channels(graph: Graph, shapes: Shapes, node: NodeProto, carried: set[str]) -> bool:
    """Whether the node only moves data of the LayerNorm, and the channels stay on the last axis."""
    if node.op_type not in MOVES:
        return False
    data = node.input if node.op_type == "Concat" else node.input[:1]
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if not all(name in carried for name in data) or not before or not after or before[-1] != after[-1]:
        return False
    last = len(before) - 1
    if node.op_type == "Transpose":
        return attribute(node, "perm", [])[-1:] == [last]
    if node.op_type == "Concat":
        return attribute(node, "axis") not in (-1, last)
    if node.op_type == "Slice" and len(node.input) > 4:
        steps = graph.constants.get(node.input[4])
        return steps is not None and bool((steps > 0).all())
    return isinstance(before[-1], int)


def scaled_parameters(graph: Graph, norm: NodeProto, grid: Grid) -> list[np.ndarray]:
    """The LayerNorm's parameters divided by the scales: its output is then in steps of one."""
    values = [graph.constants[name] for name in norm.input[1:]]
    return [(value.astype(np.float64) / grid.scale).astype(np.float32) for value in values]


def scaled_weight(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """[in, out] weights of a layer whose input comes divided by the scales of `grid`, [in]."""
    return (weight.astype(np.float64) * grid.scale[:, None]).astype(np.float32)
