"""Every quantization of a recipe, with the same codes as in the simulation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from ptq2themoon.deploy.deploy_report import Placement
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.integer_operators import FAITHFUL, write_integers
from ptq2themoon.deploy.integers import grid_at, not_integer, operands_of, problem, unit_of_scales
from ptq2themoon.deploy.kinds import Form, Forms, Formula, Unwritten, forms_of
from ptq2themoon.deploy.linear_layers import weight_grid, weight_values, write_product
from ptq2themoon.deploy.writer import S8, U8, Writer
from ptq2themoon.graph.editing.onnx_graph import tensor_shapes
from ptq2themoon.graph.editing.operator_types import LINEAR_TYPES, WEIGHTED_TYPES, has_bias
from ptq2themoon.graph.forms.linear import Linear, as_linear
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.modes import Profile

SMALL = 1  # dimensions; vectors (biases, scales of norms) stay float, on their grid


class Faithful:
    """Writes the graph with Q and DQ at every quantized input and output.

    A tensor that is quantized by its producer and by its reader with one grid is quantized once, but anew for
    a product where others read it too: ONNX Runtime joins a DequantizeLinear with one product at most.
    ONNX Runtime merges two quantizations in a row, different scales or not, where both have one integer
    type: so the second has the other (uint8 with zero point 128, int8 with 0), but not for TensorRT,
    which knows int8 alone.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: Mapping[str, QuantizedOperator], profile: Profile
    ) -> None:
        self.writer = Writer(model, zero_points=profile != "tensorrt")
        self.quantized, self.profile = quantized, profile
        self.shapes = tensor_shapes(model)
        self.ranks = {name: len(shape) for name, shape in self.shapes.items()}
        self.placements: dict[str, Placement] = {}
        self.kept: dict[str, str] = {}  # products in floating point by the kind that is none of integers

    def write(self) -> onnx.ModelProto:
        """The INT8 model with every quantization of the recipe."""
        for node in self.writer.graph.nodes:
            item = self.quantized.get(node.name)
            grids: Forms = forms_of(item) if item else {}
            self._node(node, grids)
        return self.writer.finish()

    def _node(self, node: NodeProto, grids: Forms) -> None:
        linear = as_linear(self.writer.graph, node)
        raw = [self._raw_output(node, i, grids) for i in range(len(node.output))]
        if linear is not None:
            self._linear(node, linear, grids, raw[0])
        elif (
            node.op_type == "Conv"
            and grids
            and node.input[-1] in self.writer.graph.constants
            and len(node.input) == 3
        ):
            self._conv(node, grids, raw[0])
        else:
            inputs = [self._input(node, i, grids) for i in range(len(node.input))]
            if node.op_type == "Softmax" and self.profile == "onnxruntime":
                inputs = [self._apart(inputs[0], grids)]
            self._keep(node, inputs, raw)
        if grids:
            self.placements[node.name] = self._place(node, linear, grids)
        for i, name in enumerate(node.output):
            grid = grids.get(("output", i))
            if grid is not None:
                final = name if name in self.writer.graph.outputs else None
                dtype = self._type(raw[i])
                self.writer.reads[name] = self.writer.quantized(raw[i], grid, dtype, self.ranks[name], final)

    def _keep(self, node: NodeProto, inputs: list[str], outputs: list[str]) -> None:
        """As it is, or on integers where the simulation computes so."""
        item = self.quantized.get(node.name)
        if item is None or item.arithmetic is None:
            self.writer.keep(node, inputs, outputs)
            return
        quantizer = next(t.ready() for t in item.tensors if (t.operand, t.position) == ("input", 0))
        shape = self.shapes[node.input[0]]
        write_integers(self.writer, item.arithmetic, node.name, inputs, shape, quantizer, outputs[0])

    def _raw_output(self, node: NodeProto, i: int, grids: Forms) -> str:
        """The model's own outputs keep their names behind a DequantizeLinear."""
        name = node.output[i]
        is_final = name in self.writer.graph.outputs and ("output", i) in grids
        return self.writer.name(f"{name}/raw") if is_final else name

    def _apart(self, tensor: str, grids: Forms) -> str:
        """A Clip that clips nothing, between an operator and the DequantizeLinear before it.

        Without it ONNX Runtime takes QLinearSoftmax, several times slower and with other codes, and rounds
        weights of convolutions that are not integers.
        """
        grid = grids.get(("input", 0))
        if not isinstance(grid, Grid) or grid.per_channel or ("output", 0) not in grids:
            return tensor
        bounds = [
            self.writer.constant(f"{tensor}/{side}", np.float32(code) * grid.scale)
            for side, code in (("least", grid.low), ("most", grid.high))
        ]
        return self.writer.add("Clip", [tensor, *bounds], f"{tensor}/apart")

    def _linear(self, node: NodeProto, linear: Linear, grids: Forms, output: str) -> None:
        inputs = [self._input(node, 0, grids), self._weight(node, 1, grids, linear)]
        bias = linear.bias
        if bias is not None and ("bias", 2) in grids:
            bias = grids["bias", 2].values(bias)
        write_product(self.writer, node.name, inputs, bias, self.shapes[linear.x], output)

    def _conv(self, node: NodeProto, grids: Forms, output: str) -> None:
        """With its bias apart: ONNX Runtime would round it to steps of the product otherwise."""
        writer = self.writer
        x, weight, name = (self._input(node, i, grids) for i in range(3))
        if weight in writer.graph.constants and self.profile == "onnxruntime":
            x = self._apart(x, grids)
        bias = writer.graph.constants[name].reshape([-1] + [1] * (self.ranks[node.output[0]] - 2))
        product = writer.name(f"{node.output[0]}/product")
        writer.keep(node, [x, weight], [product])
        writer.add("Add", [product, writer.constant(f"{node.name}/bias", bias)], node.name, output)

    def _input(self, node: NodeProto, position: int, grids: Forms) -> str:
        tensor = node.input[position]
        grid = grids.get(("input", position))
        if grid is not None:
            new, own = self.writer.read(tensor), self._own(node, tensor, grid)
            if self.writer.on_grid(new, grid):
                if not own:
                    return new
                new = self.writer.source(new)
            dtype = self._type(new, second=node.op_type == "MatMul" and position == 1)
            return self.writer.quantized(new, grid, dtype, self.ranks[tensor], own=own)
        if ("weight", position) in grids or ("bias", position) in grids:
            return self._weight(node, position, grids)
        return self.writer.read(tensor)

    def _own(self, node: NodeProto, tensor: str, grid: Form) -> bool:
        """Whether the operator is a product that reads integers which others read too."""
        if node.op_type not in LINEAR_TYPES or not isinstance(grid, Grid) or grid.per_channel:
            return False
        return len(self.writer.graph.consumers(tensor)) > 1

    def _weight(self, node: NodeProto, position: int, grids: Forms, linear: Linear | None = None) -> str:
        """A parameter: matrices and more as int8, vectors as float on their grid."""
        value = linear.weight if linear else self.writer.graph.constants[node.input[position]]
        grid = grids.get(("weight", position)) or grids.get(("bias", position))
        stem = f"{node.name}/weight{position}"
        if grid is None:
            return self.writer.constant(stem, value) if linear else node.input[position]
        if isinstance(grid, Formula):
            return self.writer.constant(stem, weight_values(linear, grid) if linear else grid.values(value))
        grid = weight_grid(linear, grid) if linear else grid
        if value.ndim <= SMALL or not self.writer.has_integers(grid):
            return self.writer.constant(stem, grid.values(value))
        channels = _output_axis(node, linear)
        if not grid.per_channel and channels is not None and self.profile == "tensorrt":
            grid = grid.repeated(value.shape[channels], channels)
        if (grid.per_channel and grid.axis != channels) or not self._reads_integers(grids):
            return self.writer.scaled_weight(stem, value, grid)
        return self.writer.weight(stem, value, grid)

    def _reads_integers(self, grids: Forms) -> bool:
        """Whether the left side of a product is integers of one scale.

        Else ONNX Runtime would take dequantized weights as a reason to round the left side in its own way
        (MatMulNBits).
        """
        grid = grids.get(("input", 0))
        return isinstance(grid, Grid) and not grid.per_channel and self.writer.has_integers(grid)

    def _type(self, tensor: str, *, second: bool = False) -> np.dtype:
        """Integer type for `tensor` of the new graph; `second`: it is the right side of a product."""
        again = self.writer.stored_type(tensor) == S8
        return U8 if again and not second and self.profile == "onnxruntime" else S8

    def _place(self, node: NodeProto, linear: Linear | None, grids: Forms) -> Placement:
        for form in grids.values():
            if isinstance(form, Unwritten):
                self.kept[node.name] = form.kind
                return Placement("float", form.why)
        if self.quantized[node.name].arithmetic is not None:
            return Placement("float", FAITHFUL)
        if node.op_type == "Conv" and has_bias(node):
            return Placement("float", "with its bias in integers it would give other codes")
        if node.op_type not in WEIGHTED_TYPES and linear is None:
            return Placement("float", "the runtime computes it in floating point between quantized tensors")
        operands = operands_of(grids)
        if (formula := not_integer(grids, operands)) is not None:
            self.kept[node.name] = formula.kind
        if (place := problem(grids, operands, self.profile)) is not None:
            return place
        left, right = (grid_at(grids, operand, i) for i, operand in enumerate(operands))
        if operands[1] == "weight":
            if left.per_channel:
                return Placement("float", "activations with a scale for each channel of the reduction axis")
            stored = weight_grid(linear, right) if linear else right
            if stored.per_channel and stored.axis != _output_axis(node, linear):
                return Placement("float", "weights with a scale for each channel of the reduction axis")
        elif left.per_channel or right.per_channel:
            return Placement("float", f"activations with a scale for each {unit_of_scales(left, right)}")
        return Placement("integer", "both inputs are integers with scales that the product can take out")


def _output_axis(node: NodeProto, linear: Linear | None) -> int | None:
    """Axis of a weight's output channels, as the new graph stores it."""
    if linear is not None:
        return 1
    return 0 if node.op_type == "Conv" else None
