"""Linear layers in one form, whatever operator a graph has for them: x @ weight + bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.kinds import Form
from ptq2themoon.deploy.writer import Writer
from ptq2themoon.graph.editing.onnx_graph import Graph, attribute
from ptq2themoon.graph.editing.operator_types import (
    BIAS,
    FUSED_MATMUL,
    LINEAR_TYPES,
    has_bias,
    holds_out_in,
)


@dataclass(frozen=True)
class Linear:
    """A layer with constant weights.

    Attributes:
        x: name of the input.
        weight: [in, out].
        bias: [out], or None.
        transposed: whether the graph stores the weight as [out, in].
    """

    x: str
    weight: np.ndarray
    bias: np.ndarray | None
    transposed: bool

    def grid(self, grid: Grid) -> Grid:
        """That of the stored weight, for `weight`."""
        return grid.transposed() if self.transposed else grid

    def values(self, form: Form) -> np.ndarray:
        """`weight` quantized as the stored weight is, float32."""
        return form.values(self.weight.T).T if self.transposed else form.values(self.weight)


def as_linear(graph: Graph, node: NodeProto) -> Linear | None:
    """The layer that `node` is, if it is one with a matrix of weights and a vector of biases."""
    if node.op_type not in LINEAR_TYPES or node.input[0] in graph.constants:
        return None
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return Linear(node.input[0], weight, None, False)
    bias = graph.constants.get(node.input[BIAS]) if has_bias(node) else None
    if node.op_type == FUSED_MATMUL:
        return Linear(node.input[0], weight, bias, False) if bias is not None else None
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    if not plain or attribute(node, "transA", 0) or (has_bias(node) and (bias is None or bias.ndim != 1)):
        return None
    transposed = holds_out_in(node)
    return Linear(node.input[0], weight.T if transposed else weight, bias, transposed)


def write_product(
    writer: Writer,
    stem: str,
    inputs: list[str],
    bias: np.ndarray | None,
    shape: Sequence[int | str],
    output: str,
) -> None:
    """MatMul and the addition of a float bias, so that ONNX Runtime computes it in integers.

    Where it knows all dimensions, or there are two, it turns MatMul and Add into Gemm first, and then
    finds no integer kernel, or rounds the bias to integers. So the bias has as many dimensions as the
    product there, or is subtracted with its sign changed.

    Args:
        shape: of the first input.
    """
    if bias is None:
        writer.add("MatMul", inputs, stem, output)
        return
    product = writer.add("MatMul", inputs, stem)
    if len(shape) == 2:
        writer.add("Sub", [product, writer.constant(f"{stem}/bias", -bias)], stem, output)
        return
    fixed = all(isinstance(n, int) for n in shape)
    value = bias.reshape([1] * (len(shape) - 1) + [-1]) if fixed else bias
    writer.add("Add", [product, writer.constant(f"{stem}/bias", value)], stem, output)
