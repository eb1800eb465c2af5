"""Bring an exported graph to one form: constants folded, no shape arithmetic, a free batch dimension.

Exporters leave chains of Shape, Gather and Concat that compute what a fixed image size already
tells. Left in the graph they would be taken for operators to quantize. So: fix the batch, let shape
inference and folding remove every chain, then give the batch dimension back. In between, what
exporters write in several ways is rewritten to one: linear layers, the scale of attention, the axis
of a LayerNorm.
"""

from __future__ import annotations

from math import prod
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
    most_constants,
    read_instead,
    tensor_shapes,
)
from ptq2themoon.graph.forms.attention_scale import rewrite_scale
from ptq2themoon.graph.forms.batch_norms import fold_batch_norms, normalised
from ptq2themoon.graph.forms.einsum import rewrite_einsums
from ptq2themoon.graph.forms.free_batch import free_batch, set_batch
from ptq2themoon.graph.forms.images_axis import UntoldImages
from ptq2themoon.graph.forms.linear_form import rewrite_linear
from ptq2themoon.graph.forms.masks import LOWEST, rewrite_masks
from ptq2themoon.graph.forms.numbers import to_float32
from ptq2themoon.graph.forms.old_opsets import restore_softmax
from ptq2themoon.graph.forms.scatter import rewrite_scatters
from ptq2themoon.graph.forms.stem import fold_image_steps
from ptq2themoon.graph.forms.support import (
    branch_taken,
    check_domains,
    check_types,
    opset_of,
    to_opset,
)
from ptq2themoon.graph.forms.taken_apart import rewrite_taken_apart
from ptq2themoon.graph.forms.unit_norms import rewrite_unit_norms
from ptq2themoon.graph.forms.written_out import write_out_defined, write_out_newer, write_out_runtime
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError

FUSED_OPSET = 20  # the first that has both LayerNormalization (17) and Gelu (20)
MINIMUM_IR = 9  # of opset 20


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function at opset 20, folded, its first dimension named `batch`.

    A graph of one image that does not tell which dimension carries it stays one of one image, with a warning.

    Raises:
        UserError: a graph with several inputs, or a batch dimension that cannot be freed.
    """
    model = write_out_newer(_without_choices(inline_functions(model)), FUSED_OPSET)
    graph_inputs = Graph(model).inputs
    if len(graph_inputs) != 1:
        raise UserError(f"the model has {len(graph_inputs)} inputs {graph_inputs}; one image input is needed")
    batch, is_free = _batch_of(model, graph_inputs[0])
    converted = write_out_runtime(to_opset(model, FUSED_OPSET))
    check_domains(converted)
    converted = write_out_defined(converted)
    model = _at_batch(converted, batch)
    check_types(model)

    def other() -> Shapes:
        return tensor_shapes(_at_batch(converted, batch + 1)) if is_free else {}

    try:
        return free_batch(model, batch, other)
    except UntoldImages as error:
        if batch > 1:
            raise UserError(f"{error}; export the model with a batch of one, or with a free one") from None
        warn(f"{error}; the model runs one image at a time, which takes longer")
        return model


def _without_choices(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what the converter of opsets does not take: branches, and norms of constants."""
    if not any(node.op_type in ("BatchNormalization", "If") for node in model.graph.node):
        return model
    return fold_constants(model, opset_of(model))


def _at_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model for so many images, without shape arithmetic."""
    return _rewrite(rewrite_einsums(to_float32(fold_constants(_fix_batch(model, batch)))), batch)


def _batch_of(model: onnx.ModelProto, graph_input: str) -> tuple[int, bool]:
    """The images that a graph of fixed batch takes, 1 where it is free; and whether it is."""
    (value,) = (item for item in model.graph.input if item.name == graph_input)
    dims = value.type.tensor_type.shape.dim
    fixed = dims[0].dim_value if dims else 1
    return max(fixed, 1), not fixed


def _rewrite(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    graph, shapes = Graph(model), tensor_shapes(model)
    _drop_last_copy(graph)
    fold_image_steps(graph, shapes)
    restore_softmax(graph, shapes)
    for node in graph.nodes:
        rank = len(shapes.get(node.input[0], ())) if node.input else 0
        _last_axis(graph, node, rank)
        _global_pool(graph, node, rank)
        _pool_with_pad(graph, node)
    rewrite_unit_norms(graph, shapes)
    rewrite_taken_apart(graph, shapes)
    rewrite_masks(graph, shapes)
    rewrite_scatters(graph, shapes)
    fold_batch_norms(graph, shapes)
    rewrite_linear(graph, shapes, batch)
    rewrite_scale(graph)
    return graph.finish()


def _drop_last_copy(graph: Graph) -> None:
    """Let an operator give the graph's output itself where an Identity passes it on."""
    for node in [n for n in graph.nodes if _passes(graph, n) and n.output[0] in graph.outputs]:
        source, output = node.input[0], node.output[0]
        maker = graph.producer(source)
        if maker is None or source in graph.outputs:
            continue
        graph.nodes = [other for other in graph.nodes if other is not node]
        graph.rename_uses(source, output)
        maker.output[:] = [output if name == source else name for name in maker.output]
        graph.reindex()


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


def _pool_with_pad(graph: Graph, node: NodeProto) -> None:
    """Let a MaxPool pad by itself where a Pad before it puts the least numbers around an image."""
    pad = graph.producer(node.input[0]) if node.op_type == "MaxPool" else None
    if pad is None or pad.op_type != "Pad" or len(pad.input) != 3 or len(node.output) > 1:
        return
    widths, fill = (graph.constants.get(name) for name in pad.input[1:])
    plain = attribute(pad, "mode", b"constant") == b"constant"
    own = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if widths is None or fill is None or fill > LOWEST or not (plain and own) or widths.size != 8:
        return
    (*before, top, left), (*after, bottom, right) = np.split(widths, 2)
    more = np.array([top, left, bottom, right]) + np.array(attribute(node, "pads", [0] * 4))
    kernel = np.array(attribute(node, "kernel_shape") * 2)
    if any(before) or any(after) or (more < 0).any() or (more >= kernel).any():
        return
    pool = copied(node)
    pool.input[0] = pad.input[0]
    kept = [item for item in pool.attribute if item.name not in ("auto_pad", "pads")]
    pool.ClearField("attribute")
    pool.attribute.extend([*kept, helper.make_attribute("pads", more.tolist())])
    graph.replace([node], [pool])


def _fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    fixed = copied(model)
    fixed.ir_version = max(fixed.ir_version, MINIMUM_IR)
    fixed.graph.ClearField("value_info")
    set_batch(fixed, batch)
    return fixed


def _constant_value(
    graph: Graph, node: NodeProto, shapes: Shapes, opset: int, room: int
) -> np.ndarray | None:
    """The value of a node whose inputs (or, for Shape, whose input's shape) are known; else None.

    Args:
        room: how many elements it may have.
    """
    if not _gives_one(graph, node) or node.domain or any(item.HasField("g") for item in node.attribute):
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
    size = prod(d for d in shapes.get(node.output[0], ()) if isinstance(d, int))
    if size > room:
        raise UserError(
            f"operator {node.name or node.output[0]!r} ({node.op_type}): makes a constant of {size} numbers, "
            f"where {room} are left for all constants; export the model for one image"
        )
    if node.op_type == "BatchNormalization":
        return normalised(node, [feeds[name] for name in node.input])
    (value,) = ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    return np.asarray(value)


def _gives_one(graph: Graph, node: NodeProto) -> bool:
    """Whether only the first output is read; a norm of constants in training mode has others."""
    return not any(name in graph.outputs or graph.consumers(name) for name in node.output[1:])


def _passes(graph: Graph, node: NodeProto) -> bool:
    """Whether a node gives its first input unchanged: Identity, and Dropout out of training."""
    return node.op_type == "Identity" or (node.op_type == "Dropout" and _gives_one(graph, node))


def fold_constants(model: onnx.ModelProto, opset: int = FUSED_OPSET) -> onnx.ModelProto:
    """Compute once what depends on no input; repeat while shape inference learns from it.

    Args:
        opset: of the model.

    Raises:
        UserError: constants that would fill the memory.
    """
    while True:
        graph = Graph(model)
        changed = _fold_once(graph, tensor_shapes(model), opset)
        model = graph.finish()
        if not changed:
            return model


def _fold_once(graph: Graph, shapes: Shapes, opset: int) -> bool:
    """One walk along the operators, in place; whether anything changed. Its time grows with their number."""
    kept: list[NodeProto] = []
    same: dict[str, str] = {}  # tensors that are but another one's copy
    room = most_constants(value.size for value in graph.constants.values())
    for node in graph.nodes:
        read_instead(node, same)
        if _passes(graph, node) and node.output[0] not in graph.outputs:
            same[node.output[0]] = node.input[0]
        elif node.op_type == "If" and node.input[0] in graph.constants:
            branch = branch_taken(graph, node)
            graph.register(branch)
            kept += branch
        elif (value := _constant_value(graph, node, shapes, opset, room)) is not None:
            graph.constants[node.output[0]] = value
            room -= value.size
        else:
            kept.append(node)
    changed = [id(node) for node in kept] != [id(node) for node in graph.nodes]
    graph.nodes = kept
    graph.reindex()
    return changed
