"""What is done to the image before its first convolution: folded into the weights where that is the same.

Models that take 0..255 subtract a mean and divide by a deviation themselves. Left in the graph, such steps
would be quantized, and hide the patch embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.editing.operator_types import BIAS, has_bias

CHANNELS = 1  # their axis in an image [B, C, H, W]
LEFT_BEFORE = ("Clip", "Pad", "Resize", "Slice")  # steps before these stay, those after them are folded


@dataclass
class _Steps:
    """tensor[:, channels] * scale + shift, and its axes in the order `axes`."""

    tensor: str
    number: int
    nodes: list[NodeProto]
    scale: np.ndarray
    shift: np.ndarray
    channels: np.ndarray
    axes: list[int]

    @classmethod
    def after(cls, tensor: str, number: int) -> _Steps:
        """None yet, on an image of so many channels."""
        return cls(tensor, number, [], np.ones(number), np.zeros(number), np.arange(number), [0, 1, 2, 3])

    @property
    def axis(self) -> int:
        return self.axes.index(CHANNELS)


def fold_image_steps(graph: Graph, shapes: Shapes) -> None:
    """Fold what scales, shifts or reorders the image into the one convolution that reads it.

    A convolution that pads its image with zeros takes up no shift. A graph without such steps stays.
    """
    tensor = graph.inputs[0]
    size = shapes.get(tensor, ())
    number = size[CHANNELS] if len(size) == 4 else None
    if not isinstance(number, int):
        return
    steps = _Steps.after(tensor, number)
    while True:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or tensor in graph.outputs:
            return
        (node,) = readers
        tensor = node.output[0]
        if node.op_type == "Conv":
            break
        if _take(graph, steps, node):
            steps.nodes.append(node)
        elif node.op_type in LEFT_BEFORE and shapes.get(tensor, ())[CHANNELS:2] == (steps.number,):
            steps = _Steps.after(tensor, steps.number)
        else:
            return
    if steps.nodes and steps.axes == [0, 1, 2, 3] and _fold(graph, node, steps):
        node.input[0] = steps.tensor
        graph.drop_dead()


def _take(graph: Graph, steps: _Steps, node: NodeProto) -> bool:
    """Whether the node is a step that `steps` now includes."""
    if node.op_type == "Transpose":
        steps.axes = [steps.axes[i] for i in attribute(node, "perm", [3, 2, 1, 0])]
        return True
    if node.op_type == "Gather":
        return _reorder(graph, steps, node)
    if node.op_type == "BatchNormalization":
        return _normalise(graph, steps, node)
    operands = graph.split_operands(node) if node.op_type in ("Add", "Sub", "Mul", "Div") else None
    value = _of_channels(operands[1], steps) if operands else None
    constant_first = node.input[0] in graph.constants
    if value is None or (node.op_type == "Div" and (constant_first or not value.all())):
        return False
    if node.op_type in ("Mul", "Div"):
        factor = value if node.op_type == "Mul" else 1 / value
        steps.scale, steps.shift = steps.scale * factor, steps.shift * factor
    elif node.op_type == "Sub" and constant_first:
        steps.scale, steps.shift = -steps.scale, value - steps.shift
    else:
        steps.shift = steps.shift + (value if node.op_type == "Add" else -value)
    return True


def _reorder(graph: Graph, steps: _Steps, gather: NodeProto) -> bool:
    """Channels in another order, as BGR for RGB."""
    order = graph.constants.get(gather.input[1])
    if order is None or attribute(gather, "axis", 0) % 4 != steps.axis or order.ndim != 1:
        return False
    order = order % steps.number
    if sorted(order) != list(range(steps.number)):
        return False
    steps.scale, steps.shift, steps.channels = steps.scale[order], steps.shift[order], steps.channels[order]
    return True


def _normalise(graph: Graph, steps: _Steps, node: NodeProto) -> bool:
    """By constants, as a BatchNormalization does."""
    if steps.axis != CHANNELS or any(name not in graph.constants for name in node.input[1:]):
        return False
    gamma, beta, mean, variance = (graph.constants[n].astype(np.float64) for n in node.input[1:5])
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    steps.scale, steps.shift = steps.scale * factor, (steps.shift - mean) * factor + beta
    return True


def _of_channels(value: np.ndarray, steps: _Steps) -> np.ndarray | None:
    """[C] of a constant that is the same at all places of an image; None for others."""
    if value.ndim > 4:
        return None
    whole = value.reshape((1,) * (4 - value.ndim) + value.shape)
    others = [size for i, size in enumerate(whole.shape) if i != steps.axis]
    if any(size != 1 for size in others) or whole.shape[steps.axis] not in (1, steps.number):
        return None
    return np.broadcast_to(whole.reshape(-1).astype(np.float64), (steps.number,))


def _fold(graph: Graph, conv: NodeProto, steps: _Steps) -> bool:
    """Whether the convolution's weights could take up the steps."""
    weight = graph.constants.get(conv.input[1])
    bias = graph.constants.get(conv.input[BIAS]) if has_bias(conv) else None
    if weight is None or attribute(conv, "group", 1) != 1 or (bias is None and has_bias(conv)):
        return False
    shifts = bool(steps.shift.any())
    pads = any(attribute(conv, "pads", [])) or attribute(conv, "auto_pad", b"NOTSET").startswith(b"SAME")
    if shifts and pads:
        return False
    exact, out = weight.astype(np.float64), conv.output[0]
    scaled = np.empty_like(exact)
    scaled[:, steps.channels] = exact * steps.scale[:, None, None]
    conv.input[1] = graph.add_constant(f"{out}/weight", scaled.astype(weight.dtype))
    if shifts:
        moved = exact.sum((2, 3)) @ steps.shift + (0 if bias is None else bias)
        conv.input[:] = [*conv.input[:2], graph.add_constant(f"{out}/bias", moved.astype(weight.dtype))]
    return True
