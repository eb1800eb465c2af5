"""Files whose images have their channels last, as TensorFlow's: given channels first like all others."""

from __future__ import annotations

import onnx
from onnx import helper

from ptq2themoon.graph.editing.onnx_graph import attribute
from ptq2themoon.vocabulary.model_info import READABLE_CHANNELS

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
BEFORE = ("Add", "Cast", "Div", "Identity", "Mul", "Sub")


def take_channels_first(model: onnx.ModelProto) -> None:
    """Let a graph that transposes its images [B, H, W, C] itself take [B, C, H, W], in place.

    Others stay, those too whose rows could be taken for channels.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in model.graph.input if value.name not in constants]
    if len(images) != 1 or not _transposes(model, images[0].name):
        return
    dims = images[0].type.tensor_type.shape.dim
    if len(dims) != 4 or dims[3].dim_value not in READABLE_CHANNELS or dims[1].dim_value in READABLE_CHANNELS:
        return
    name = images[0].name
    rows = f"{name}/channels_last"
    for node in model.graph.node:
        node.input[:] = [rows if tensor == name else tensor for tensor in node.input]
    model.graph.node.insert(
        0, helper.make_node("Transpose", [name], [rows], f"{rows}/Transpose", perm=TO_LAST)
    )
    order = [onnx.TensorShapeProto.Dimension() for _ in dims]
    for new, i in zip(order, TO_FIRST, strict=True):
        new.CopyFrom(dims[i])
    images[0].type.tensor_type.shape.ClearField("dim")
    images[0].type.tensor_type.shape.dim.extend(order)


def _transposes(model: onnx.ModelProto, tensor: str) -> bool:
    """Whether what reads the images brings their channels to the front, past what normalises them."""
    while True:
        # A size that is asked for is that of the images as they were, which the first operator restores.
        readers = [node for node in model.graph.node if tensor in node.input and node.op_type != "Shape"]
        if len(readers) != 1:
            return False
        if readers[0].op_type == "Transpose":
            return list(attribute(readers[0], "perm", [])) == TO_FIRST
        if readers[0].op_type not in BEFORE:
            return False
        tensor = readers[0].output[0]
