"""LayerNorm and RMSNorm as exporters take them apart, with their scale and shift or without.

Without them, the one operator has ones for a scale and zeros for a shift.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, reduced_axes, tensor_shapes
from ptq2themoon.graph.editing.operator_types import DOMAIN, RMS_NORM
from ptq2themoon.graph.forms.gelu import is_value, scalar_operand

Matched = tuple[list[NodeProto], NodeProto]  # what is consumed, and the operator in its place


def match_layer_norm(graph: Graph, node: NodeProto) -> Matched | None:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, and perhaps Mul and Add; anchored at the Div."""
    found = _standardised(graph, node)
    if found is None:
        return None
    x, epsilon, consumed = found
    sub = graph.producer(x)
    mean = _mean_over_channels(graph, sub.input[1]) if sub is not None and sub.op_type == "Sub" else None
    if sub is None or mean is None or mean.input[0] != sub.input[0]:
        return None
    last, gamma = _affine(graph, node, "Mul")
    last, beta = _affine(graph, last, "Add", like=gamma)
    width = next((graph.constants[name].size for name in (gamma, beta) if name), None) or _width(graph, x)
    if width is None:
        return None
    gamma = gamma or graph.add_constant(f"{node.output[0]}/ones", np.ones(width, np.float32))
    beta = beta or graph.add_constant(f"{node.output[0]}/zeros", np.zeros(width, np.float32))
    inputs = [sub.input[0], gamma, beta]
    new = helper.make_node("LayerNormalization", inputs, list(last.output), axis=-1, epsilon=epsilon)
    return [mean, sub, *consumed, *_between(graph, node, last)], new


def match_rms_norm(graph: Graph, node: NodeProto) -> Matched | None:
    """Pow, ReduceMean, Add, Sqrt, Div or Reciprocal and Mul, and perhaps Mul; anchored at the division."""
    found = _standardised(graph, node)
    if found is None:
        return None
    x, epsilon, consumed = found
    last, gamma = _affine(graph, node, "Mul")
    width = graph.constants[gamma].size if gamma else _width(graph, x)
    if width is None:
        return None
    gamma = gamma or graph.add_constant(f"{node.output[0]}/ones", np.ones(width, np.float32))
    new = helper.make_node(RMS_NORM, [x, gamma], list(last.output), domain=DOMAIN, epsilon=epsilon)
    return [*consumed, *_between(graph, node, last)], new


def _standardised(graph: Graph, node: NodeProto) -> tuple[str, float, list[NodeProto]] | None:
    """(x, epsilon, operators) where `node` ends x / sqrt(mean(x^2) + epsilon) over the last axis."""
    for x, divisor, between in quotients(graph, node):
        root = graph.producer(divisor)
        if root is None or (root.op_type != "Sqrt" and not is_value(scalar_operand(graph, root, "Pow"), 0.5)):
            continue
        add = graph.producer(root.input[0])
        epsilon = scalar_operand(graph, add, "Add")
        mean = _mean_over_channels(graph, epsilon[0]) if epsilon else None
        square = graph.producer(mean.input[0]) if mean is not None else None
        if add is not None and epsilon and mean and square is not None and squared(graph, square) == x:
            return x, epsilon[1], [square, mean, add, root, *between, node]
    return None


def quotients(graph: Graph, node: NodeProto) -> list[tuple[str, str, list[NodeProto]]]:
    """(dividend, divisor, operators between) of each way to read the node as a division."""
    if node.op_type == "Div":
        return [(node.input[0], node.input[1], [])]
    if node.op_type != "Mul":
        return []
    found = []
    for x, other in (tuple(node.input), tuple(node.input)[::-1]):
        inverse = graph.producer(other)
        if inverse is not None and inverse.op_type == "Reciprocal":
            found.append((x, inverse.input[0], [inverse]))
        elif inverse is not None and inverse.op_type == "Div" and is_one(graph, inverse.input[0]):
            found.append((x, inverse.input[1], [inverse]))
    return found


def is_one(graph: Graph, tensor: str) -> bool:
    value = graph.constants.get(tensor)
    return value is not None and value.size == 1 and math.isclose(float(value.reshape(())), 1.0)


def _affine(graph: Graph, node: NodeProto, kind: str, like: str = "") -> tuple[NodeProto, str]:
    """(the Mul or Add by a constant [channels] that alone reads `node`, that constant), if there is one."""
    following = graph.only_consumer(node, kind)
    operands = graph.split_operands(following) if following is not None else None
    if following is None or operands is None or operands[1].ndim != 1 or operands[1].size < 2:
        return node, ""
    constant = next(name for name in following.input if name in graph.constants)
    if like and graph.constants[like].shape != operands[1].shape:
        return node, ""
    return following, constant


def _between(graph: Graph, first: NodeProto, last: NodeProto) -> list[NodeProto]:
    """The operators after `first`, each read by the next alone, up to `last`."""
    found, node = [], first
    while node is not last:
        (node,) = graph.consumers(node.output[0])
        found.append(node)
    return found


def _width(graph: Graph, x: str) -> int | None:
    """Channels of a tensor."""
    width = tensor_shapes(graph.model).get(x, ("?",))[-1]
    return width if isinstance(width, int) else None


def _mean_over_channels(graph: Graph, tensor: str) -> NodeProto | None:
    """The ReduceMean over the last axis that makes `tensor`."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "ReduceMean":
        return None
    return node if reduced_axes(graph, node) == [-1] and attribute(node, "keepdims", 1) == 1 else None


def squared(graph: Graph, node: NodeProto) -> str | None:
    """The tensor that `node` squares, as Pow(x, 2) or Mul(x, x)."""
    if node.op_type == "Pow" and is_value(scalar_operand(graph, node, "Pow"), 2.0):
        return node.input[0]
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return node.input[0]
    return None


def mean_of(graph: Graph, tensor: str, output: str, name: str) -> NodeProto:
    """A mean over the channels, that axis kept."""
    axes = graph.add_constant(f"{output}/axes", np.array([-1], np.int64))
    return helper.make_node("ReduceMean", [tensor, axes], [output], name, keepdims=1)


def reduced_axis(graph: Graph, tensor: str, kind: str, x: str, shapes: Shapes) -> int | None:
    """The one axis, the last as -1, over which `tensor` is the sum, mean or maximum of x, that axis kept."""
    node, rank = graph.producer(tensor), len(shapes.get(x, ()))
    if node is None or node.op_type != kind or node.input[0] != x or not attribute(node, "keepdims", 1):
        return None
    axes = reduced_axes(graph, node)
    if axes is None or len(axes) != 1 or (rank == 0 and axes[0] != -1):
        return None
    axis = axes[0] if rank == 0 else axes[0] % rank
    return -1 if axis in (-1, rank - 1) else axis
