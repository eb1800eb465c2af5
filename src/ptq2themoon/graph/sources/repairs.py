"""Files that ONNX Runtime runs though ONNX's checker refuses them, brought to what the checker asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import NodeProto, helper, numpy_helper
from onnx_ir.passes.common import TopologicalSortPass

from ptq2themoon.graph.editing.one_message import check_model
from ptq2themoon.graph.editing.onnx_graph import STANDARD_DOMAINS, attribute, copied
from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary.errors import UserError

LAYER_NORM_OPSET = 17  # the first with LayerNormalization
AXES_AS_INPUT = 18  # the first where those of means are an input


def repaired(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The operators in topological order, outputs with a shape, and no shapes of what lies between.

    An output without a shape gets one that `state_output` must replace.
    """
    model = copied(model)
    model.graph.ClearField("value_info")  # what is written there may contradict the operators
    _write_out_norms(model)
    for value in model.graph.output:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        check_model(model)
    except onnx.checker.ValidationError as error:
        if "topologically sorted" not in str(error):
            raise
        model = _sorted(model, path)
        check_model(model)
    return model


def _write_out_norms(model: onnx.ModelProto) -> None:
    """Write out, in place, norms that ONNX Runtime's optimisers put into a domain and opset without them."""
    opset = next((item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS), 0)
    kinds = {"SimplifiedLayerNormalization"} | ({"LayerNormalization"} if opset < LAYER_NORM_OPSET else set())
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        last = attribute(node, "axis", -1) == -1 and not any(node.output[1:])
        if node.op_type in kinds and node.domain in STANDARD_DOMAINS and last:
            nodes += _norm(model.graph, node, opset)
        else:
            nodes.append(node)
    if len(nodes) > len(model.graph.node):
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)


def _norm(graph: onnx.GraphProto, node: NodeProto, opset: int) -> list[NodeProto]:
    """The operators that a norm over the last axis stands for, as exporters take it apart."""
    stem = f"{node.output[0]}/apart"
    made: list[NodeProto] = []

    def make(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{stem}/{len(made)}"
        made.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(value: np.ndarray, name: str) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{stem}/{name}"))
        return f"{stem}/{name}"

    def mean(of: str) -> str:
        if opset < AXES_AS_INPUT:
            return make("ReduceMean", of, axes=[-1])
        return make("ReduceMean", of, constant(np.array([-1]), f"axes{len(made)}"))

    x, gamma, *beta = node.input
    centred = make("Sub", x, mean(x)) if node.op_type == "LayerNormalization" else x
    variance = mean(make("Pow", centred, constant(np.array(2, np.float32), "two")))
    epsilon = constant(np.array(attribute(node, "epsilon", 1e-5), np.float32), "epsilon")
    scaled = make("Mul", make("Div", centred, make("Sqrt", make("Add", variance, epsilon))), gamma)
    if beta and beta[0]:
        make("Add", scaled, beta[0])
    made[-1].output[0] = node.output[0]
    return made


def _sorted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        with quiet("onnx_ir"):  # ONNX's checker says what is wrong
            found = TopologicalSortPass()(onnx_ir.from_proto(model)).model
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its operators have no order ({reason}); export the model again") from None
    return onnx_ir.to_proto(found)


def state_output(model: onnx.ModelProto, name: str, computed: Sequence[int]) -> None:
    """Write down the shape that was computed where the file says nothing, or something else.

    Args:
        computed: of the output, [images, ...].
    """
    (output,) = (value for value in model.graph.output if value.name == name)
    (image,) = model.graph.input
    batch = image.type.tensor_type.shape.dim[0]
    stated = output.type.tensor_type.shape
    sizes, expected = [dim.dim_value for dim in stated.dim], [batch.dim_value, *computed[1:]]
    if len(sizes) == len(expected) and all(a in (0, b) for a, b in zip(sizes, expected, strict=True)):
        return
    stated.ClearField("dim")
    stated.dim.add().CopyFrom(batch)
    for size in computed[1:]:
        stated.dim.add().dim_value = size
