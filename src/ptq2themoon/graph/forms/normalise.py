"""Bring an exported graph to one form: constants folded, no shape arithmetic, a free batch dimension.

Exporters leave chains of Shape, Gather and Concat that compute what a fixed image size already
tells. Left in the graph they would be taken for operators to quantize. So: fix the batch, let shape
inference and folding remove every chain, then give the batch dimension back. In between, what
exporters write in several ways is rewritten to one: linear layers, the scale of attention, the axis
of a LayerNorm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from ptq2themoon.graph.editing.onnx_graph import (
    Graph,
    Shapes,
    attribute,
    copied,
    inline_functions,
    tensor_shapes,
)
from ptq2themoon.graph.forms.attention_scale import rewrite_scale
from ptq2themoon.graph.forms.linear_form import rewrite_linear
from ptq2themoon.graph.forms.numbers import to_float32
from ptq2themoon.graph.forms.old_opsets import restore_softmax
from ptq2themoon.graph.forms.stem import fold_image_steps
from ptq2themoon.graph.forms.support import (
    branch_taken,
    check_domains,
    check_types,
    to_opset,
)
from ptq2themoon.graph.forms.tied_batch import untie_constants
from ptq2themoon.vocabulary.errors import UserError

FUSED_OPSET = 20  # the first that has both LayerNormalization (17) and Gelu (20)
MINIMUM_IR = 9  # of opset 20
BATCH = "batch"


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function at opset 20, folded, its first dimension named `batch`.

    Raises:
        UserError: a graph with several inputs, or a batch dimension that cannot be freed.
    """
    model = inline_functions(model)
    check_domains(model)
    graph_inputs = Graph(model).inputs
    if len(graph_inputs) != 1:
        raise UserError(f"the model has {len(graph_inputs)} inputs {graph_inputs}; one image input is needed")
    batch = _batch_of(model, graph_inputs[0])
    model = fold_constants(_fix_batch(to_opset(model, FUSED_OPSET), batch))
    model = _rewrite(to_float32(model), batch)
    check_types(model)
    return free_batch(model, batch)


def _batch_of(model: onnx.ModelProto, graph_input: str) -> int:
    """The images that a graph of fixed batch takes; 1 where it is free."""
    (value,) = (item for item in model.graph.input if item.name == graph_input)
    dims = value.type.tensor_type.shape.dim
    return max(dims[0].dim_value, 1) if dims else 1


def _rewrite(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    graph, shapes = Graph(model), tensor_shapes(model)
    fold_image_steps(graph, shapes)
    restore_softmax(graph, shapes)
    for node in graph.nodes:
        rank = len(shapes.get(node.input[0], ())) if node.input else 0
        _last_axis(graph, node, rank)
        _global_pool(graph, node, rank)
    rewrite_linear(graph, shapes, batch)
    rewrite_scale(graph)
    return graph.finish()


def _last_axis(graph: Graph, node: NodeProto, rank: int) -> None:
    """Write the last axis of a mean or a LayerNorm as -1, and a LayerNorm with the bias that it may lack."""
    if node.op_type == "LayerNormalization":
        for item in node.attribute:
            if item.name == "axis" and item.i == rank - 1:
                item.i = -1
        scale = graph.constants.get(node.input[1])
        if scale is not None and (len(node.input) < 3 or not node.input[2]):
            zeros = graph.add_constant(f"{node.output[0]}/bias", np.zeros_like(scale))
            node.input[:] = [*node.input[:2], zeros]
    elif node.op_type == "ReduceMean" and len(node.input) == 2:
        axes = graph.constants.get(node.input[1])
        if axes is not None and axes.tolist() == [rank - 1]:
            node.input[1] = graph.add_constant(f"{node.output[0]}/axes", np.array([-1], dtype=np.int64))


def _global_pool(graph: Graph, node: NodeProto, rank: int) -> None:
    """Write the mean over rows and columns of [B, C, H, W], its rank kept, as GlobalAveragePool."""
    if (
        node.op_type != "ReduceMean"
        or rank != 4
        or len(node.input) != 2
        or not attribute(node, "keepdims", 1)
    ):
        return
    axes = graph.constants.get(node.input[1])
    if axes is not None and sorted(axes % rank) == [2, 3]:
        node.op_type = "GlobalAveragePool"
        node.input.pop()
        node.ClearField("attribute")


def _set_batch(model: onnx.ModelProto, value: int | str) -> None:
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


def _fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    fixed = copied(model)
    fixed.ir_version = max(fixed.ir_version, MINIMUM_IR)
    fixed.graph.ClearField("value_info")
    _set_batch(fixed, batch)
    return fixed


def _constant_value(graph: Graph, node: NodeProto, shapes: Shapes) -> np.ndarray | None:
    """The value of a node whose inputs (or, for Shape, whose input's shape) are known; else None."""
    if len(node.output) != 1 or node.domain or any(item.HasField("g") for item in node.attribute):
        return None  # no single value, not standard, or a subgraph
    if node.op_type.startswith("Random"):
        return None
    feeds: dict[str, Any] = {name: graph.constants[name] for name in node.input if name in graph.constants}
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0], ("?",))
        known = [d for d in shape if isinstance(d, int)]
        if len(known) < len(shape):
            return None
        feeds = {node.input[0]: np.broadcast_to(np.float32(0), known)}
    elif not all(name in feeds or name == "" for name in node.input):
        return None
    (value,) = ReferenceEvaluator(node, opsets={"": FUSED_OPSET}).run(None, feeds)
    return np.asarray(value)


def _passes(graph: Graph, node: NodeProto) -> bool:
    """Whether a node gives its first input unchanged: Identity, and Dropout out of training."""
    mask = any(name in graph.outputs or graph.consumers(name) for name in node.output[1:])
    return node.op_type == "Identity" or (node.op_type == "Dropout" and not mask)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute once what depends on no input; repeat while shape inference learns from it."""
    while True:
        graph, shapes, changed = Graph(model), tensor_shapes(model), False
        for node in list(graph.nodes):
            if _passes(graph, node) and node.output[0] not in graph.outputs:
                graph.rename_uses(node.output[0], node.input[0])
            elif node.op_type == "If" and node.input[0] in graph.constants:
                graph.replace([node], branch_taken(graph, node))
                changed = True
                continue
            else:
                value = _constant_value(graph, node, shapes)
                if value is None:
                    continue
                graph.constants[node.output[0]] = value
            graph.nodes = [n for n in graph.nodes if n is not node]
            changed = True
        model = graph.finish()
        if not changed:
            return model


def free_batch(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    """Turn a graph of fixed batch into a graph of any batch.

    The first dimension of every Reshape is recomputed from its input; a constant that is
    concatenated to activations (class token, registers) is expanded to their batch; one that has rows
    for each image is left with those of one.
    """
    graph, shapes = Graph(model), tensor_shapes(model)
    for node in list(graph.nodes):
        if node.op_type == "Reshape" and node.input[1] in graph.constants:
            target = shapes.get(node.output[0])
            if target is None or not all(isinstance(d, int) for d in target):
                raise UserError(
                    f"operator {node.name!r} (Reshape): its shape depends on the image; fix the input size"
                )
            free = np.array([-1, *target[1:]], dtype=np.int64)
            node.input[1] = graph.add_constant(f"{node.output[0]}/shape", free)
        elif node.op_type == "Expand":
            _free_expand(graph, node, shapes)
        elif node.op_type == "Resize":
            _free_resize(graph, node, shapes)
        elif node.op_type == "Concat":
            _expand_constants(graph, node, batch)
    freed = graph.finish()
    _set_batch(freed, BATCH)
    return untie_constants(freed, batch)


def _free_expand(graph: Graph, expand: NodeProto, shapes: Shapes) -> None:
    """Ask for one row where the tensor has all that are asked for: one row leaves them as they are."""
    shape, source = graph.constants.get(expand.input[1]), shapes.get(expand.input[0], ())
    if shape is not None and len(source) == len(shape) and source[0] == shape[0]:
        free = np.array([1, *shape[1:]], dtype=np.int64)
        expand.input[1] = graph.add_constant(f"{expand.output[0]}/shape", free)


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


def _expand_constants(graph: Graph, concat: NodeProto, batch: int) -> None:
    activations = [name for name in concat.input if name not in graph.constants]
    if not activations or attribute(concat, "axis") == 0:
        return
    for i, name in enumerate(concat.input):
        value = graph.constants.get(name)
        if value is None or value.ndim < 2 or value.shape[0] not in (1, batch) or (value != value[:1]).any():
            continue
        stem = f"{concat.output[0]}/{i}"
        if value.shape[0] > 1:
            name = graph.add_constant(f"{stem}/row", value[:1])
        first = graph.add_constant(f"{stem}/first", np.array([0], dtype=np.int64))
        rest = graph.add_constant(f"{stem}/rest", np.array(value.shape[1:], dtype=np.int64))
        shape, images, to, out = (graph.free_tensor(f"{stem}/{k}") for k in ("shape", "batch", "to", "out"))
        new = [
            helper.make_node("Shape", [activations[0]], [shape], f"{stem}/Shape"),
            helper.make_node("Gather", [shape, first], [images], f"{stem}/Gather", axis=0),
            helper.make_node("Concat", [images, rest], [to], f"{stem}/Concat", axis=0),
            helper.make_node("Expand", [name, to], [out], f"{stem}/Expand"),
        ]
        concat.input[i] = out
        graph.replace([concat], [*new, concat])
