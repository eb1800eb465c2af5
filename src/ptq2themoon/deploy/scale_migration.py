"""Where the scales of channel-wise activations can go, so that one integer scale is left.

Per-channel scales of a layer's input lie on the reduction axis of its product, where no integer
kernel can take them out of the sum. So the activations are divided by their scales, and the weights'
input channels multiplied by them, which are then quantized again per output channel. After a LayerNorm
the division costs nothing: gamma and beta carry it. Elsewhere it is one multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes
from ptq2themoon.graph.forms.layernorms import readers_of, scalable_norms


def layernorm_migrations(graph: Graph, shapes: Shapes, wanted: Mapping[str, Grid]) -> dict[str, Grid]:
    """LayerNorms, by name, that can be divided by the scales of all that reads them.

    Args:
        wanted: the per-channel grid of each layer's input, by the layer's name.
    """
    found = {}
    for node in scalable_norms(graph):
        readers = readers_of(graph, shapes, node)
        grids = [wanted.get(reader.name) for reader in readers or ()]
        if grids and grids[0] is not None and all(g is not None and g.same(grids[0]) for g in grids):
            found[node.name] = grids[0]
    return found


def scaled_parameters(graph: Graph, norm: NodeProto, grid: Grid) -> list[np.ndarray]:
    """The LayerNorm's parameters divided by the scales: its output is then in steps of one."""
    values = [graph.constants[name] for name in norm.input[1:]]
    return [(value.astype(np.float64) / grid.scale).astype(np.float32) for value in values]


def scaled_weight(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """[in, out] weights of a layer whose input comes divided by the scales of `grid`, [in]."""
    return (weight.astype(np.float64) * grid.scale[:, None]).astype(np.float32)
