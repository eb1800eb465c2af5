"""ScatterND that writes one box of a tensor, as an assignment to slices is exported: Slices and a Concat.

Its indices name every element, those of each image too: a graph with them takes no other batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute

Box = list[tuple[int, int]]


def rewrite_scatters(graph: Graph, shapes: Shapes) -> None:
    """Each ScatterND that fills one box; others stay.

    Args:
        shapes: of a graph whose batch is fixed.
    """
    for node in [node for node in graph.nodes if node.op_type == "ScatterND"]:
        data = shapes.get(node.input[0], ())
        indices = graph.constants.get(node.input[1])
        plain = attribute(node, "reduction", b"none") == b"none"
        if indices is None or not plain or not data or not all(isinstance(size, int) for size in data):
            continue
        sizes = [int(size) for size in data]
        box = _box(indices, sizes)
        if box is not None:
            _write(graph, node, box, sizes)


def _box(indices: np.ndarray, sizes: list[int]) -> Box | None:
    """(first, end) of each axis, where the indices name a box in order; None for others."""
    rows = indices.reshape(-1, indices.shape[-1])
    if not rows.size or (rows < 0).any():
        return None
    box = list(zip(rows.min(0).tolist(), (rows.max(0) + 1).tolist(), strict=True))
    grid = np.stack(np.meshgrid(*(np.arange(*edges) for edges in box), indexing="ij"), -1)
    if not np.array_equal(grid.reshape(-1, len(box)), rows):
        return None
    return [*box, *((0, size) for size in sizes[len(box) :])]


def _write(graph: Graph, node: NodeProto, box: Box, sizes: list[int]) -> None:
    stem, new = node.name or node.output[0], list[NodeProto]()

    def made(kind: str, inputs: list[str], **attributes: Any) -> str:
        name = graph.free_tensor(f"{stem}/{kind}_{len(new)}")
        new.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def number(values: list[int]) -> str:
        return graph.add_constant(f"{stem}/constant", np.array(values, dtype=np.int64))

    filled = made("Reshape", [node.input[2], number([end - first for first, end in box])])
    partial = [axis for axis, edges in enumerate(box) if edges != (0, sizes[axis])]
    for axis in reversed(partial):  # `filled` is whole along the axes after it
        kept = [other for other in partial if other < axis]
        parts = [filled]
        for first, end in ((0, box[axis][0]), (box[axis][1], sizes[axis])):
            if first == end:
                continue
            starts = number([*(box[other][0] for other in kept), first])
            ends = number([*(box[other][1] for other in kept), end])
            part = made("Slice", [node.input[0], starts, ends, number([*kept, axis])])
            parts.insert(0 if first == 0 else len(parts), part)
        filled = made("Concat", parts, axis=axis)
    new[-1].output[0] = node.output[0]
    graph.replace([node], new)
