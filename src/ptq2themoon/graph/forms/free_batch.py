"""A graph of fixed batch made one of any batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.forms.images_axis import Images, ImagesAxes
from ptq2themoon.graph.forms.tied_batch import untie_constants

BATCH = "batch"


def set_batch(model: onnx.ModelProto, value: int | str) -> None:
    """State the first dimension of the images and of the outputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for item in [*model.graph.input, *model.graph.output]:
        dims = item.type.tensor_type.shape.dim
        if item.name in constants or not dims:
            continue
        dims[0].Clear()
        if isinstance(value, int):
            dims[0].dim_value = value
        else:
            dims[0].dim_param = value


def free_batch(
    model: onnx.ModelProto, batch: int = 1, other: Callable[[], Shapes] | None = None
) -> onnx.ModelProto:
    """Turn a graph of fixed batch into a graph of any batch.

    The dimension of every Reshape that carries the images is recomputed from its input; a constant that is
    concatenated to activations (class token, registers) is expanded to their batch; one that has rows
    for each image is left with those of one.

    Args:
        other: shapes of the same graph at another batch, if it has them.

    Raises:
        UntoldImages: an operator behind which the graph does not tell the images' dimension.
    """
    axes = ImagesAxes(model, batch, other)
    graph, shapes = Graph(model), axes.shapes
    for node in list(graph.nodes):
        images = axes.found.get(node.output[0], Images(0, 1))
        if node.op_type == "Reshape" and node.input[1] in graph.constants:
            free = np.array(shapes[node.output[0]], dtype=np.int64)
            free[images.axis] = -1
            node.input[1] = graph.add_constant(f"{node.output[0]}/shape", free)
        elif node.op_type == "Expand":
            _free_expand(graph, node, shapes, images.axis)
        elif node.op_type == "Resize":
            _free_resize(graph, node, shapes)
        elif axes.meets_constant_rows(node):
            _part_heads(graph, node, shapes, images.within)
        elif node.op_type == "Concat":
            _expand_constants(graph, node, batch * images.within, images.axis)
    freed = graph.finish()
    set_batch(freed, BATCH)
    return untie_constants(freed, batch)


def _free_expand(graph: Graph, expand: NodeProto, shapes: Shapes, axis: int) -> None:
    """Ask for one row where the tensor has all that are asked for: one row leaves them as they are."""
    shape, source = graph.constants.get(expand.input[1]), shapes.get(expand.input[0], ())
    if shape is not None and len(source) == len(shape) and source[axis] == shape[axis]:
        free = shape.astype(np.int64)
        free[axis] = 1
        expand.input[1] = graph.add_constant(f"{expand.output[0]}/shape", free)


def _part_heads(graph: Graph, matmul: NodeProto, shapes: Shapes, heads: int) -> None:
    """Let a constant [heads, ...] meet [images, heads, ...] where it met [images * heads, ...].

    Of one head, a row of its own for each image becomes one for all.
    """
    out, stem = matmul.output[0], matmul.name or matmul.output[0]
    rest, new = shapes[out][1:], []
    for i, name in enumerate(matmul.input):
        value = graph.constants.get(name)
        if value is not None:
            matmul.input[i] = graph.add_constant(f"{out}/heads", value[:heads])
        if value is not None or heads == 1:
            continue
        to = graph.add_constant(f"{out}/apart", np.array([-1, heads, *shapes[name][1:]], dtype=np.int64))
        matmul.input[i] = graph.free_tensor(f"{out}/parted")
        new.append(helper.make_node("Reshape", [name, to], [matmul.input[i]], f"{stem}/apart"))
    if heads == 1:
        return
    matmul.output[0] = graph.free_tensor(f"{out}/joint")
    to = graph.add_constant(f"{out}/together", np.array([-1, *rest], dtype=np.int64))
    joint = helper.make_node("Reshape", [matmul.output[0], to], [out], f"{stem}/joint")
    graph.replace([matmul], [*new, matmul, joint])


def _free_resize(graph: Graph, resize: NodeProto, shapes: Shapes) -> None:
    """Tell scales instead of sizes, which count the images too."""
    sizes = graph.constants.get(resize.input[3]) if len(resize.input) > 3 else None
    known = [size for size in shapes.get(resize.input[0], ()) if isinstance(size, int)]
    if sizes is None or len(sizes) != len(known):  # scales already, or sizes of some dimensions
        return
    scales = (sizes / known).astype(np.float32)
    short = np.floor(scales.astype(np.float64) * known) < sizes  # by rounding
    scales = np.where(short, np.nextafter(scales, np.float32(np.inf)), scales)
    scales_name = graph.add_constant(f"{resize.output[0]}/scales", scales)
    resize.input[:] = [*resize.input[:2], scales_name]


def _expand_constants(graph: Graph, concat: NodeProto, rows: int, axis: int) -> None:
    """Give constants that join activations as many rows along `axis` as these have.

    Args:
        rows: that the constants have now.
    """
    activations = [name for name in concat.input if name not in graph.constants]
    if not activations or attribute(concat, "axis") == axis:
        return
    for i, name in enumerate(concat.input):
        value = graph.constants.get(name)
        if value is None or value.ndim < 2 or value.shape[axis] != rows:
            continue
        row = value.take([0], axis)
        if (value != row).any():
            continue
        stem = f"{concat.output[0]}/{i}"
        if value.shape[axis] > 1:
            name = graph.add_constant(f"{stem}/row", row)
        where = graph.add_constant(f"{stem}/first", np.array([axis], dtype=np.int64))
        sizes = [("rest", value.shape[axis + 1 :])] if not axis else [
            ("before", value.shape[:axis]), ("rest", value.shape[axis + 1 :])
        ]  # fmt: skip
        parts = [graph.add_constant(f"{stem}/{k}", np.array(v, dtype=np.int64)) for k, v in sizes]
        shape, images, to, out = (graph.free_tensor(f"{stem}/{k}") for k in ("shape", "batch", "to", "out"))
        parts.insert(len(parts) - 1, images)
        new = [
            helper.make_node("Shape", [activations[0]], [shape], f"{stem}/Shape"),
            helper.make_node("Gather", [shape, where], [images], f"{stem}/Gather", axis=0),
            helper.make_node("Concat", parts, [to], f"{stem}/Concat", axis=0),
            helper.make_node("Expand", [name, to], [out], f"{stem}/Expand"),
        ]
        concat.input[i] = out
        graph.replace([concat], [*new, concat])
