"""Only what integer kernels make faster is quantized; the rest stays in floating point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from ptq2themoon.deploy.folds import layernorm_folds, scaled_parameters, scaled_weight
from ptq2themoon.deploy.grid import Grid, Grids, grids_of
from ptq2themoon.deploy.linear import Linear, as_linear, write_product
from ptq2themoon.deploy.modes import Profile
from ptq2themoon.deploy.patches import Patches, as_patches
from ptq2themoon.deploy.report import Fold, Place
from ptq2themoon.deploy.writer import S8, U8, Writer
from ptq2themoon.graph.editing import tensor_shapes
from ptq2themoon.graph.norms import MOVES
from ptq2themoon.quantize.tensors import QuantizedOperator

FLOAT = Place("float", "runtimes compute it in floating point: quantizing it costs time and accuracy")
UNQUANTIZED = Place("float", "the recipe leaves an input in floating point")
WIDE = Place("float", "more than 8 bits")
CHANNELS = Place("float", "activations with a scale for each channel, which this operator cannot take out")
CARRYING = Place(
    "integer", "weights carry the scales of the input's channels, quantized again per output channel"
)
AGAIN = Place("integer", "weights had a scale for each input channel, quantized again per output channel")
NO_OUTPUT = Place("float", "a convolution needs an output with one scale to run in integers")


class Fast:
    """Writes the graph with Q and DQ at the inputs of matrix products, and around convolutions.

    Products keep their output in floating point: what follows computes in it anyway. A convolution's
    output is quantized, for ONNX Runtime has no integer kernel without; one that cuts patches is written
    as the product that it is. Biases stay as they are.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: Mapping[str, QuantizedOperator], profile: Profile
    ) -> None:
        self.writer = Writer(model)
        self.grids: dict[str, Grids] = {name: grids_of(item) for name, item in quantized.items()}
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
        shape, stem, bias = self.shapes[linear.x], node.name, None
        if (
            len(shape) == 2
            and linear.bias is not None
            and scale is not None
            and self.profile == "onnxruntime"
        ):
            bias = self.writer.integer_bias(f"{stem}/bias", linear.bias, scale)
        if bias is not None:  # of two dimensions ONNX Runtime takes a Gemm, whose bias must be integers
            self.writer.add("Gemm", [x, weight, bias], stem, node.output[0])
        else:
            write_product(self.writer, stem, [x, weight], linear.bias, shape, node.output[0])
        return place

    def _weight(self, linear: Linear, grids: Grids) -> tuple[np.ndarray, Grid, Place]:
        """Values [in, out] and their grid, per tensor or per output channel."""
        values, grid = linear.weight, linear.grid(grids["weight", 1])
        if grids["input", 0].per_channel:
            values = scaled_weight(values, grids["input", 0])
            return values, Grid.of_weight(values, 1, grid.bits), CARRYING
        return values, *self._weight_grid(values, grid, 1)

    def _weight_grid(self, values: np.ndarray, grid: Grid, axis: int) -> tuple[Grid, Place]:
        """Per tensor, or along the `axis` of the output channels."""
        if grid.per_channel and grid.axis != axis:
            return Grid.of_weight(values, axis, grid.bits), AGAIN
        if grid.per_channel:
            return grid, Place("integer", "weights with a scale for each output channel")
        spread = grid.spread_over(values.shape[axis], axis) if self.profile == "tensorrt" else grid
        return spread, Place("integer", "weights with one scale")

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
                inputs[i] = self._operand(node.input[i], grid)
            place = Place("integer", "both inputs with one scale")
        self.writer.keep(node, inputs)
        return place

    def _operand(self, tensor: str, grid: Grid) -> str:
        """`tensor` quantized, before a Transpose that it alone comes from rather than after.

        The codes are the same. OpenVINO fuses an attention with the Transpose that stands right before its
        product; with a quantization between, it moves the integers first.
        """
        graph, rank = self.writer.graph, len(self.shapes[tensor])
        move = graph.producer(tensor)
        readers = [node for node in graph.nodes if tensor in node.input]
        if move is None or move.op_type != "Transpose" or len(readers) > 1 or tensor in graph.outputs:
            return self.writer.quantized(self.writer.read(tensor), grid, S8, rank)
        before = self.writer.quantized(self.writer.read(move.input[0]), grid, S8, rank)
        self.writer.nodes = [node for node in self.writer.nodes if tensor not in node.output]
        self.writer.keep(move, [before])
        return tensor

    def _conv(self, node: NodeProto, grids: Grids) -> Place:
        """As a product where it cuts patches, else in integers where its output is quantized too."""
        place, output = _problem(grids, ("input", "weight")), grids.get(("output", 0))
        if place is None and grids["input", 0].per_channel:
            place = CHANNELS
        patches = as_patches(self.writer.graph, self.shapes, node)
        if place is None and patches is not None:
            return self._patches(node, grids, patches)
        if place is None and (output is None or not output.stored or output.per_channel):
            place = NO_OUTPUT
        if place is not None or output is None:
            self.writer.keep(node, map(self.writer.read, node.input))
            return place or FLOAT
        # ONNX Runtime has kernels of this for uint8 alone on x86.
        dtype = U8 if self.profile == "onnxruntime" else S8
        x = self.writer.read(node.input[0])
        if not self.writer.on_grid(x, grids["input", 0]):
            x = self.writer.quantized(x, grids["input", 0], dtype, 4)
        values = self.writer.graph.constants[node.input[1]]
        grid, place = self._weight_grid(values, grids["weight", 1], 0)
        inputs = [x, self.writer.weight(f"{node.name}/weight", values, grid), *node.input[2:]]
        if len(node.input) > 2 and self.profile == "onnxruntime":
            bias, step = self.writer.graph.constants[node.input[2]], grids["input", 0].scale * grid.scale
            inputs[2] = self.writer.integer_bias(f"{node.name}/bias", bias, step) or inputs[2]
        name = node.output[0]
        raw = self.writer.name(f"{name}/raw")
        self.writer.keep(node, inputs, [raw])
        final = name if name in self.writer.graph.outputs else None
        self.writer.reads[name] = self.writer.quantized(raw, output, dtype, 4, final)
        return place

    def _patches(self, node: NodeProto, grids: Grids, patches: Patches) -> Place:
        """The output stays in floating point, as that of every product."""
        writer, stem, constants = self.writer, node.name, self.writer.graph.constants
        weight, place = self._weight_grid(constants[node.input[1]], grids["weight", 1], 0)
        grid = weight if weight.axis is None else Grid(weight.scale, 1, weight.low, weight.high)
        rows = patches.cut(writer, stem, writer.read(node.input[0]))
        x = writer.quantized(rows, grids["input", 0], S8, 3)
        inputs = [x, writer.weight(f"{stem}/weight", patches.weight, grid)]
        bias = constants[node.input[2]] if len(node.input) > 2 else None
        shape = [self.shapes[node.input[0]][0], patches.count, len(patches.weight)]
        product = writer.name(f"{stem}/product")
        write_product(writer, stem, inputs, bias, shape, product)
        patches.as_image(writer, stem, product, node.output[0])
        return place._replace(why=f"a product of patches; {place.why}")


def _problem(grids: Grids, operands: tuple[str, str]) -> Place | None:
    """Why inputs 0 and 1 cannot be integers, if so."""
    found = [grids.get((operand, i)) for i, operand in enumerate(operands)]
    if any(grid is None for grid in found):
        return UNQUANTIZED
    return WIDE if not all(grid.stored for grid in found if grid) else None
