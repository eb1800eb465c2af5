"""Only what integer kernels make faster is quantized; the rest stays in floating point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from ptq2themoon.deploy.folds import MOVES, layernorm_folds, scaled_parameters, scaled_weight
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.linear import Linear, as_linear, write_product
from ptq2themoon.deploy.modes import Profile
from ptq2themoon.deploy.report import Fold, Place
from ptq2themoon.deploy.writer import S8, Writer
from ptq2themoon.graph.editing import tensor_shapes
from ptq2themoon.quantize.tensors import QuantizedOperator

Grids = Mapping[tuple[str, int], Grid]  # by operand and position
FLOAT = Place("float", "runtimes compute it in floating point: quantizing it costs time and accuracy")
UNQUANTIZED = Place("float", "the recipe leaves an input in floating point")
WIDE = Place("float", "more than 8 bits")
CHANNELS = Place("float", "activations with a scale for each channel, which this operator cannot take out")
CARRYING = Place(
    "integer", "weights carry the scales of the input's channels, quantized again per output channel"
)
AGAIN = Place("integer", "weights had a scale for each input channel, quantized again per output channel")
FIRST = Place("float", "its output would have to be quantized: more error than the little time is worth")
FLOAT_CONVOLUTIONS = ("patch_embed",)  # roles


class Fast:
    """Writes the graph with Q and DQ at the inputs of matrix products, and around convolutions.

    Products keep their output in floating point: what follows computes in it anyway. A convolution's
    output is quantized, for ONNX Runtime has no integer kernel without. Biases stay as they are.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: Mapping[str, QuantizedOperator], profile: Profile
    ) -> None:
        self.writer = Writer(model)
        self.grids: dict[str, Grids] = {
            name: {(t.operand, t.position): Grid.of(t) for t in item.tensors}
            for name, item in quantized.items()
        }
        self.roles = {name: item.operator.role for name, item in quantized.items()}
        self.profile = profile
        self.shapes = tensor_shapes(model)
        self.places: dict[str, Place] = {}
        self.folds: list[Fold] = []
        self.norms = layernorm_folds(self.writer.graph, self.shapes, self._channelwise())
        self._divided: dict[str, tuple[str, Grid]] = {}  # tensors in steps of one: who divided them

    def _channelwise(self) -> dict[str, Grid]:
        """Grid of the input of each layer that runs in integers and has a scale for each channel."""
        found = {}
        for node in self.writer.graph.nodes:
            linear = as_linear(self.writer.graph, node)
            grids = self.grids.get(node.name, {})
            if linear is not None and _problem(grids, ("input", "weight")) is None:
                grid = grids["input", 0]
                if grid.per_channel:
                    found[node.name] = grid
        return found

    def write(self) -> onnx.ModelProto:
        for node in self.writer.graph.nodes:
            place = self._node(node, self.grids.get(node.name, {}))
            if node.name in self.grids:
                self.places[node.name] = place
        return self.writer.finish()

    def _node(self, node: NodeProto, grids: Grids) -> Place:
        linear = as_linear(self.writer.graph, node)
        constants = self.writer.graph.constants
        if linear is not None:
            return self._linear(node, linear, grids)
        if node.op_type == "MatMul" and not any(name in constants for name in node.input):
            return self._product(node, grids)
        if node.op_type == "Conv" and node.input[1] in constants:
            return self._conv(node, grids)
        inputs = [self.writer.read(name) for name in node.input]
        if node.name in self.norms:
            values = scaled_parameters(self.writer.graph, node, self.norms[node.name])
            inputs[1:] = [self.writer.constant(f"{node.name}/parameter", value) for value in values]
        self.writer.keep(node, inputs)
        return FLOAT

    def _linear(self, node: NodeProto, linear: Linear, grids: Grids) -> Place:
        x, place, scale = self.writer.read(linear.x), _problem(grids, ("input", "weight")), None
        if place is not None:
            weight = self.writer.constant(f"{node.name}/weight", linear.weight)
        else:
            values, grid, place = self._weight(linear, grids)
            x, step = self._input(node, linear, x, grids["input", 0])
            weight = self.writer.weight(f"{node.name}/weight", values, grid)
            scale = step * grid.scale
        shape, stem = self.shapes[linear.x], node.name
        if (
            len(shape) == 2
            and linear.bias is not None
            and scale is not None
            and self.profile == "onnxruntime"
        ):
            # Of two dimensions ONNX Runtime takes a Gemm, whose bias must be integers.
            bias = self.writer.integer_bias(f"{stem}/bias", linear.bias, scale)
            self.writer.add("Gemm", [x, weight, bias], stem, node.output[0])
        else:
            write_product(self.writer, stem, [x, weight], linear.bias, shape, node.output[0])
        return place

    def _weight(self, linear: Linear, grids: Grids) -> tuple[np.ndarray, Grid, Place]:
        """Values [in, out] and their grid, per tensor or per output channel."""
        values, grid = linear.weight, linear.grid(grids["weight", 1])
        bits = grid.high.bit_length() + 1
        if grids["input", 0].per_channel:
            values = scaled_weight(values, grids["input", 0])
            return values, Grid.of_weight(values, 1, bits), CARRYING
        if grid.per_channel and grid.axis != 1:
            return values, Grid.of_weight(values, 1, bits), AGAIN
        if grid.per_channel:
            return values, grid, Place("integer", "weights with a scale for each output channel")
        place = Place("integer", "weights with one scale")
        return values, grid.spread_over(values.shape[1], 1) if self.profile == "tensorrt" else grid, place

    def _input(self, node: NodeProto, linear: Linear, x: str, grid: Grid) -> tuple[str, np.float32]:
        """The layer's input, quantized, and its one scale."""
        if grid.per_channel:
            norm = self._norm_of(linear.x)
            if norm is None:
                x = self._divide(x, grid)
            self.folds.append(Fold(node.name, norm, len(grid.scale)))
            grid = grid.unit()
        rank = len(self.shapes[linear.x])
        return self.writer.quantized(x, grid, S8, rank), np.float32(grid.scale)

    def _norm_of(self, tensor: str) -> str | None:
        """The LayerNorm before, if it was divided by the scales: everything between only moves data."""
        node = self.writer.graph.producer(tensor)
        while node is not None and node.op_type in MOVES:
            node = self.writer.graph.producer(node.input[0])
        return node.name if node is not None and node.name in self.norms else None

    def _divide(self, x: str, grid: Grid) -> str:
        """`x` in steps of its channels' scales, made once for all layers that read it so."""
        done = self._divided.get(x)
        if done is None or not done[1].same(grid):
            reciprocal = self.writer.constant(f"{x}/reciprocal", np.float32(1) / grid.scale)
            done = self._divided[x] = self.writer.add("Mul", [x, reciprocal], f"{x}/divide"), grid
        return done[0]

    def _product(self, node: NodeProto, grids: Grids) -> Place:
        """Of two activations: queries and keys, attention and values."""
        inputs = [self.writer.read(name) for name in node.input]
        found = [grids.get(("input", i)) for i in (0, 1)]
        place = _problem(grids, ("input", "input"))
        if place is None and any(grid is not None and grid.per_channel for grid in found):
            place = CHANNELS
        if place is None:
            for i, grid in enumerate(found):
                assert grid is not None
                inputs[i] = self.writer.quantized(inputs[i], grid, S8, len(self.shapes[node.input[i]]))
            place = Place("integer", "both inputs with one scale")
        self.writer.keep(node, inputs)
        return place

    def _conv(self, node: NodeProto, grids: Grids) -> Place:
        """In integers where its output is quantized too: ONNX Runtime has no such kernel without."""
        writer, output = self.writer, grids.get(("output", 0))
        x, place = writer.read(node.input[0]), _problem(grids, ("input", "weight"))
        if place is None and output is None:
            place = Place("float", "the recipe leaves its output in floating point")
        if place is None and (grids["input", 0].per_channel or (output and output.per_channel)):
            place = CHANNELS
        if place is None and self.roles[node.name] in FLOAT_CONVOLUTIONS:
            place = FIRST
        weight, scale = self._conv_weight(node, grids)
        if place is not None or output is None:
            writer.keep(node, [x, weight, *map(writer.read, node.input[2:])])
            return place or FLOAT
        x = writer.quantized(x, grids["input", 0], S8, 4)
        inputs = [x, weight]
        if len(node.input) > 2 and self.profile == "onnxruntime":
            value, step = writer.graph.constants[node.input[2]], grids["input", 0].scale * scale
            inputs.append(writer.integer_bias(f"{node.name}/bias", value, step))
        else:
            inputs += node.input[2:]
        name = node.output[0]
        raw = writer.name(f"{name}/raw")
        writer.keep(node, inputs, [raw])
        final = name if name in writer.graph.outputs else None
        writer.reads[name] = writer.quantized(raw, output, S8, 4, final)
        return Place("integer", "convolution with quantized output")

    def _conv_weight(self, node: NodeProto, grids: Grids) -> tuple[str, np.ndarray]:
        """int8 with one scale or one for each output channel, and the scale; as it is where not quantized."""
        grid, values = grids.get(("weight", 1)), self.writer.graph.constants[node.input[1]]
        if grid is None or not grid.stored:
            return node.input[1], np.ones((), np.float32)
        if grid.per_channel and grid.axis != 0:
            grid = Grid.of_weight(values, 0, grid.high.bit_length() + 1)
        if not grid.per_channel and self.profile == "tensorrt":
            grid = grid.spread_over(len(values), 0)
        return self.writer.weight(f"{node.name}/weight", values, grid), grid.scale


def _problem(grids: Grids, operands: tuple[str, str]) -> Place | None:
    """Why inputs 0 and 1 cannot be integers, if so."""
    found = [grids.get((operand, i)) for i, operand in enumerate(operands)]
    if any(grid is None for grid in found):
        return UNQUANTIZED
    return WIDE if not all(grid.stored for grid in found if grid) else None
