"""Operators that work as in training: by the other images of a batch, or by chance."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from ptq2themoon.graph.editing.onnx_graph import all_nodes, attribute
from ptq2themoon.vocabulary.errors import UserError

CHANCE = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
ADVICE = "export the model after `model.eval()`"


def refuse_training(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that was exported in training mode.

    Raises:
        UserError: its first operator that works so.
    """
    nodes = list(all_nodes(model.graph.node))
    constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: item.t
        for node in nodes
        for item in node.attribute
        if node.op_type == "Constant" and item.name == "value"
    }
    computed = {value.name for value in model.graph.input} - set(constants)
    for node in nodes:
        if any(not computed.isdisjoint(inner.input) for inner in all_nodes([node])):
            computed.update(node.output)
        why = _why(node, constants, computed)
        if why:
            name = node.name or node.output[0]
            raise UserError(
                f"{path}: operator {name!r} ({node.op_type}) is in training mode: {why}; {ADVICE}"
            )


def _why(node: NodeProto, constants: dict[str, TensorProto], computed: set[str]) -> str | None:
    if node.op_type == "BatchNormalization":
        learns = attribute(node, "training_mode", 0) or any(node.output[1:])
        learns = learns and node.input[0] in computed  # of weights it gives constants
        return "it normalises by the images of the batch" if learns else None
    if node.op_type == "Dropout" and len(node.input) > 2:
        mode, ratio = constants.get(node.input[2]), constants.get(node.input[1])
        active = mode is None or numpy_helper.to_array(mode).any()
        drops = ratio is None or numpy_helper.to_array(ratio).any()
        return "it drops values by chance" if active and drops else None
    return "its values are drawn by chance" if node.op_type in CHANCE else None
