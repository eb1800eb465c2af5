"""Linear layers with their quantized weights as the INT8 models hold them: [in, out]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.kinds import Form
from ptq2themoon.deploy.writer import Writer
from ptq2themoon.graph.forms.linear import Linear


def weight_grid(linear: Linear, grid: Grid) -> Grid:
    """That of the stored weight, for `linear.weight`."""
    return grid.transposed() if linear.transposed else grid


def weight_values(linear: Linear, form: Form) -> np.ndarray:
    """`linear.weight` quantized as the stored weight is, float32."""
    return form.values(linear.weight.T).T if linear.transposed else form.values(linear.weight)


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
