"""Linear layers as one thing, whatever operator a graph has for them: x @ weight + bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute
from ptq2themoon.graph.editing.operator_types import (
    BIAS,
    FUSED_MATMUL,
    LINEAR_TYPES,
    has_bias,
    holds_out_in,
)


@dataclass(frozen=True, eq=False)
class Linear:
    """A layer with constant weights.

    Attributes:
        name: of the operator.
        x: name of the input.
        weight: [in, out].
        bias: [out], or None.
        transposed: whether the graph stores the weight as [out, in].
    """

    name: str
    x: str
    weight: np.ndarray
    bias: np.ndarray | None
    transposed: bool

    @property
    def input_axis(self) -> int:
        """Axis of the input channels in the stored weight."""
        return 1 if self.transposed else 0

    def stored(self, weight: np.ndarray) -> np.ndarray:
        """A weight [in, out] as the graph stores it."""
        return weight.T if self.transposed else weight


def as_linear(graph: Graph, node: NodeProto) -> Linear | None:
    """The layer that `node` is, if it is one with a matrix of weights and a vector of biases."""
    if node.op_type not in LINEAR_TYPES or node.input[0] in graph.constants:
        return None
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return Linear(node.name, node.input[0], weight, None, False)
    bias = graph.constants.get(node.input[BIAS]) if has_bias(node) else None
    if node.op_type == FUSED_MATMUL:
        return Linear(node.name, node.input[0], weight, bias, False) if bias is not None else None
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    if not plain or attribute(node, "transA", 0) or (has_bias(node) and (bias is None or bias.ndim != 1)):
        return None
    transposed = holds_out_in(node)
    return Linear(node.name, node.input[0], weight.T if transposed else weight, bias, transposed)


def is_product(graph: Graph, node: NodeProto) -> bool:
    """Whether `node` is a MatMul of two activations."""
    return node.op_type == "MatMul" and not any(name in graph.constants for name in node.input)


def linear_layers(graph: Graph) -> list[Linear]:
    """All of a graph, in its order."""
    found = (as_linear(graph, node) for node in graph.nodes)
    return [layer for layer in found if layer is not None]
