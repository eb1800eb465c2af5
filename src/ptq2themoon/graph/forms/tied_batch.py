"""Constants that an export has tied to its number of images, brought to a form that serves any.

Swin's fused attention adds bias and mask of all windows of all images to the scores as one constant
[images * windows, heads, tokens, tokens]. Plain attention adds the bias to the scores, and the mask to
the scores as [images, windows, heads, tokens, tokens]; that is the form to which both are brought.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, tensor_shapes
from ptq2themoon.graph.forms.support import place
from ptq2themoon.vocabulary.errors import UserError

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Where")


def untie_constants(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Let no constant have rows of its own for each of `batch` images.

    Args:
        model: its batch dimension is free, but for such constants.

    Raises:
        UserError: a constant that differs between the images.
    """
    while True:  # behind one such constant, shape inference takes the number of images for fixed
        graph, shapes = Graph(model), tensor_shapes(model)
        tied = [(node, _rows(graph, shapes, node)) for node in graph.nodes if node.op_type in BROADCASTING]
        tied = [(node, rows) for node, rows in tied if rows > 1]
        if not tied:
            return model
        for node, rows in tied:
            windows = _one_image(graph, node, rows, batch)
            if windows > 1:
                _over_windows(graph, shapes, node, windows)
        model = graph.finish()


def _rows(graph: Graph, shapes: Shapes, node: NodeProto) -> int:
    """Rows of the constants that meet activations of any number of rows; 0 where there are none."""
    activations = [shapes.get(name, ()) for name in node.input if name not in graph.constants]
    rank = max(map(len, activations), default=0)
    whole = [shape for shape in activations if len(shape) == rank]
    rests = [size for shape in (*whole, shapes.get(node.output[0], ("?",) * 2)) for size in shape[1:]]
    if not rank or any(isinstance(shape[0], int) for shape in whole):
        return 0
    if not all(isinstance(size, int) for size in rests):
        return 0
    constants = [graph.constants[name] for name in node.input if name in graph.constants]
    return max((value.shape[0] for value in constants if value.ndim == rank), default=0)


def _one_image(graph: Graph, node: NodeProto, rows: int, batch: int) -> int:
    """Leave the rows of one image in the node's constants, one row where all are alike; returns how many."""
    left = 1
    for i, name in enumerate(node.input):
        value = graph.constants.get(name)
        if value is None or value.shape[:1] != (rows,):
            continue
        per_image = value.reshape(batch, -1, *value.shape[1:]) if rows % batch == 0 else value[:, None]
        if (per_image != per_image[:1]).any():
            raise UserError(
                f"{place(graph, node)}: its constant {list(value.shape)} is not the same for each image of "
                f"a batch of {batch}; export the model with a batch of one, or with a free one"
            )
        kept = per_image[0, :1] if (value == value[:1]).all() else per_image[0]
        node.input[i] = graph.add_constant(f"{node.output[0]}/rows", kept)
        left = max(left, len(kept))
    return left


def _over_windows(graph: Graph, shapes: Shapes, node: NodeProto, windows: int) -> None:
    """Let the node work on [images, windows, ...]; what is alike in all windows is added before."""
    out, stem = node.output[0], node.name or node.output[0]
    rest = shapes[out][1:]
    new = _added_before(graph, shapes, node)
    for i, name in enumerate(node.input):
        value = graph.constants.get(name)
        if value is not None and value.ndim == len(rest) + 1:
            node.input[i] = graph.add_constant(f"{out}/windows", value[None])
        elif value is None and len(shapes[name]) == len(rest) + 1:
            node.input[i] = graph.free_tensor(f"{out}/{i}/apart")
            new.append(
                _reshape(graph, name, [-1, windows, *shapes[name][1:]], node.input[i], f"{stem}/apart")
            )
    node.output[0] = graph.free_tensor(f"{out}/joint")
    graph.replace([node], [*new, node, _reshape(graph, node.output[0], [-1, *rest], out, f"{stem}/joint")])


def _reshape(graph: Graph, source: str, shape: list[int | str], out: str, name: str) -> NodeProto:
    to = graph.add_constant(f"{out}/shape", np.array(shape, dtype=np.int64))
    return helper.make_node("Reshape", [source, to], [out], name)


def _added_before(graph: Graph, shapes: Shapes, add: NodeProto) -> list[NodeProto]:
    """Take out of an Add's constant [windows, heads, ...] what differs between the heads alone."""
    operands = graph.split_operands(add) if add.op_type == "Add" else None
    if operands is None:
        return []
    source, value = operands
    of_heads = value[:1]
    with np.errstate(invalid="ignore"):  # a mask may be infinite
        of_windows = (value - of_heads)[:, :1]
        together = of_heads + of_windows
    if value.ndim < 3 or not np.allclose(together, value, rtol=1e-6, atol=1e-6):
        return []
    out, name = add.output[0], add.name or add.output[0]
    before = graph.free_tensor(f"{out}/heads")
    add.input[:] = [before, graph.add_constant(f"{out}/of_windows", of_windows)]
    shapes[before] = shapes[source]
    heads = graph.add_constant(f"{out}/of_heads", of_heads)
    return [helper.make_node("Add", [source, heads], [before], f"{name}/heads")]
