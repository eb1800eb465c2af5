"""Bring an exported graph to one form: constants folded, no shape arithmetic, a free batch dimension.

Exporters leave chains of Shape, Gather and Concat that compute what a fixed image size already
tells. Left in the graph they would be taken for operators to quantize. So: fix the batch to one,
let shape inference and folding remove every chain, then give the batch dimension back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, version_converter
from onnx.reference import ReferenceEvaluator

from ptq2themoon.errors import UserError
from ptq2themoon.graph.editing import Graph, Shapes, attribute, tensor_shapes

FUSED_OPSET = 20  # the first that has both LayerNormalization (17) and Gelu (20)
MINIMUM_IR = 9  # of opset 20
BATCH = "batch"


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function at opset 20, folded, its first dimension named `batch`.

    Raises:
        UserError: a graph with several inputs, or a batch dimension that cannot be freed.
    """
    graph_inputs = Graph(model).inputs
    if len(graph_inputs) != 1:
        raise UserError(f"the model has {len(graph_inputs)} inputs {graph_inputs}; one image input is needed")
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < FUSED_OPSET:
        model = version_converter.convert_version(model, FUSED_OPSET)
    return free_batch(fold_constants(_fix_batch(model)))


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


def _fix_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.ir_version = max(fixed.ir_version, MINIMUM_IR)
    fixed.graph.ClearField("value_info")
    _set_batch(fixed, 1)
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


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute once what depends on no input; repeat while shape inference learns from it."""
    while True:
        graph, shapes, changed = Graph(model), tensor_shapes(model), False
        for node in list(graph.nodes):
            if node.op_type == "Identity" and node.output[0] not in graph.outputs:
                graph.rename_uses(node.output[0], node.input[0])
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


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a graph of batch one into a graph of any batch.

    The first dimension of every Reshape is recomputed from its input; a constant that is
    concatenated to activations (class token, registers) is expanded to their batch.
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
        elif node.op_type == "Concat":
            _expand_constants(graph, node)
    freed = graph.finish()
    _set_batch(freed, BATCH)
    return freed


def _expand_constants(graph: Graph, concat: NodeProto) -> None:
    activations = [name for name in concat.input if name not in graph.constants]
    if not activations or attribute(concat, "axis") == 0:
        return
    for i, name in enumerate(concat.input):
        value = graph.constants.get(name)
        if value is None or value.ndim < 2 or value.shape[0] != 1:
            continue
        stem = f"{concat.output[0]}/{i}"
        first = graph.add_constant(f"{stem}/first", np.array([0], dtype=np.int64))
        rest = graph.add_constant(f"{stem}/rest", np.array(value.shape[1:], dtype=np.int64))
        shape, batch, to, out = (graph.free_tensor(f"{stem}/{k}") for k in ("shape", "batch", "to", "out"))
        new = [
            helper.make_node("Shape", [activations[0]], [shape], f"{stem}/Shape"),
            helper.make_node("Gather", [shape, first], [batch], f"{stem}/Gather", axis=0),
            helper.make_node("Concat", [batch, rest], [to], f"{stem}/Concat", axis=0),
            helper.make_node("Expand", [name, to], [out], f"{stem}/Expand"),
        ]
        concat.input[i] = out
        graph.replace([concat], [*new, concat])
