"""The way not taken for channel-wise activations: QuantizeLinear along the last axis, to be timed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def per_axis(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with each multiplication by a vector before a quantization of scale 1 made part of it.

    The codes stay the same: x * (1 / s) in steps of one is x in steps of s.

    Returns:
        The model, and how many quantizations are now per axis.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    changed: list[onnx.NodeProto] = []
    for node in graph.node:
        before = producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is None or before.op_type != "Mul" or before.input[1] not in constants:
            continue
        factors = numpy_helper.to_array(constants[before.input[1]]).reshape(-1)
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        if factors.size < 2 or scale.ndim:
            continue
        new = {"scale": (scale / factors).astype(np.float32), "zero": np.full(factors.size, zero, zero.dtype)}
        for part, value in new.items():
            graph.initializer.append(numpy_helper.from_array(value, f"{node.name}/axis/{part}"))
        node.input[:] = [before.input[0], *(f"{node.name}/axis/{part}" for part in new)]
        node.attribute.append(onnx.helper.make_attribute("axis", -1))
        changed.append(before)
    used = {name for node in graph.node for name in node.input}
    for node in changed:
        if node.output[0] not in used and node in graph.node:
            graph.node.remove(node)
    return made, len(changed)
