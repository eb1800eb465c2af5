"""Only what integer kernels make faster is quantized; the rest stays in floating point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from ptq2themoon.deploy.deploy_report import Placement, ScaleMigration
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.heads_apart import cut_heads
from ptq2themoon.deploy.integer_operators import FAST
from ptq2themoon.deploy.integers import Operands, grid_at, integer_type, not_integer, problem, unit_of_scales
from ptq2themoon.deploy.joint_codes import JointCodes, joint_codes
from ptq2themoon.deploy.kinds import Forms, forms_of
from ptq2themoon.deploy.linear_layers import weight_grid, write_product
from ptq2themoon.deploy.patches import Patches, as_patches
from ptq2themoon.deploy.scale_migration import layernorm_migrations, scaled_parameters, scaled_weight
from ptq2themoon.deploy.writer import ONE, S8, U8, Writer
from ptq2themoon.graph.editing.onnx_graph import maker, tensor_shapes
from ptq2themoon.graph.editing.operator_types import KEEPING_LAST_AXIS
from ptq2themoon.graph.forms.linear import Linear, as_linear, is_product
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.modes import Profile

FLOAT = Placement("float", "runtimes compute it in floating point: quantizing it costs time and accuracy")
LEFT_OUT = Placement("float", "its factor is in the scales of the layer before")
CARRYING = Placement(
    "integer", "weights carry the scales of the input's channels, quantized again per output channel"
)
AGAIN = Placement("integer", "weights had a scale for each input channel, quantized again per output channel")
ONE_SCALE = Placement("integer", "both inputs with one scale")
SHIFTED = Placement(
    "integer", "both inputs with one scale; zero points of queries, keys or values cost time in OpenVINO"
)
SCALES = "activations with a scale for each {}, which this operator cannot take out"
NO_OUTPUT = Placement("float", "a convolution needs an output with one scale to run in integers")


class Fast:
    """Writes the graph with Q and DQ at the inputs of matrix products, and around convolutions.

    Products keep their output in floating point, for what follows computes in it anyway, but for the layer
    that makes queries, keys and values. A convolution's output is quantized, for ONNX Runtime has no integer
    kernel without; one that cuts patches is written as the product that it is. Biases are not rounded.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: Mapping[str, QuantizedOperator], profile: Profile
    ) -> None:
        self.writer = Writer(model, zero_points=profile != "tensorrt")
        self.forms: dict[str, Forms] = {name: forms_of(item) for name, item in quantized.items()}
        self._arithmetic = {name: item.arithmetic for name, item in quantized.items()}
        self.profile = profile
        self.shapes = tensor_shapes(model)
        self.placements: dict[str, Placement] = {}
        self.kept: dict[str, str] = {}  # products in floating point by the kind that is none of integers
        self.migrations: list[ScaleMigration] = []
        self.norms = layernorm_migrations(self.writer.graph, self.shapes, self._channelwise())
        self._divided: dict[str, tuple[str, Grid]] = {}  # tensors in steps of one: who divided them
        cut_heads(self.writer.graph)
        self._joint: dict[str, JointCodes] = {}
        if profile == "onnxruntime":  # TensorRT was not run, so it keeps a quantization for each product
            self._joint = joint_codes(self.writer.graph, self.forms)
        self._left_out = {name for joint in self._joint.values() for name in joint.scalings}
        self._undone = {name: by for joint in self._joint.values() for name, by in joint.undone.items()}
        for joint in self._joint.values():
            for (name, position), grid in joint.read.items():
                self.forms[name] = {**self.forms[name], ("input", position): grid}

    def _channelwise(self) -> dict[str, Grid]:
        """Grid of the input of each layer that runs in integers and has per-channel scales."""
        found = {}
        for node in self.writer.graph.nodes:
            linear = as_linear(self.writer.graph, node)
            grids = self.forms.get(node.name, {})
            if linear is not None and problem(grids, ("input", "weight"), self.profile) is None:
                grid = grid_at(grids, "input", 0)
                if grid.per_channel:
                    found[node.name] = grid
        return found

    def _problem(self, node: NodeProto, forms: Forms, operands: Operands) -> Placement | None:
        if (formula := not_integer(forms, operands)) is not None:
            self.kept[node.name] = formula.kind
        return problem(forms, operands, self.profile)

    def _type(self, grid: Grid) -> np.dtype:
        return integer_type(grid, self.profile)

    def write(self) -> onnx.ModelProto:
        """The INT8 model with quantization only around products that run in integers."""
        for node in self.writer.graph.nodes:
            place = self._node(node, self.forms.get(node.name, {}))
            if node.name in self.forms:
                computed = self._arithmetic.get(node.name)
                self.placements[node.name] = place if computed is None else Placement("float", FAST)
        return self.writer.finish()

    def _node(self, node: NodeProto, forms: Forms) -> Placement:
        linear = as_linear(self.writer.graph, node)
        constants = self.writer.graph.constants
        if node.name in self._left_out:
            (source,) = (name for name in node.input if name not in constants)
            self.writer.reads[node.output[0]] = self.writer.read(source)
            return LEFT_OUT
        if linear is not None:
            return self._linear(node, linear, forms)
        if is_product(self.writer.graph, node):
            return self._product(node, forms)
        if node.op_type == "Conv" and node.input[1] in constants:
            return self._conv(node, forms)
        inputs = [self.writer.read(name) for name in node.input]
        if node.name in self.norms:
            values = scaled_parameters(self.writer.graph, node, self.norms[node.name])
            inputs[1:] = [self.writer.constant(f"{node.name}/parameter", value) for value in values]
        self.writer.keep(node, inputs)
        return FLOAT

    def _linear(self, node: NodeProto, linear: Linear, forms: Forms) -> Placement:
        x, place, scale = self.writer.read(linear.x), self._problem(node, forms, ("input", "weight")), None
        joint, shift = self._joint.get(node.name), linear.bias
        if place is not None:
            weight = self.writer.constant(f"{node.name}/weight", linear.weight)
        else:
            values, grid, place = self._weight(linear, forms)
            factors: np.ndarray | np.float32 = self._undone.get(node.name, ONE)
            if joint is not None:
                factors = factors * joint.factors
                shift = None if linear.bias is None else linear.bias * joint.factors
                place = place._replace(why=f"{place.why}; its output quantized once for all products")
            x, step = self._input(node, linear, x, grid_at(forms, "input", 0))
            weight = self.writer.weight(f"{node.name}/weight", values, grid, factors)
            scale = step * grid.times(factors).scale
        shape, stem, bias = self.shapes[linear.x], node.name, None
        if (
            len(shape) == 2
            and linear.bias is not None
            and scale is not None
            and self.profile == "onnxruntime"
        ):
            bias = self.writer.integer_bias(f"{stem}/bias", linear.bias, scale)
        output = node.output[0] if joint is None else self.writer.name(f"{stem}/steps")
        if bias is not None:  # of two dimensions ONNX Runtime takes a Gemm, whose bias must be integers
            self.writer.add("Gemm", [x, weight, bias], stem, output)
        else:
            write_product(self.writer, stem, [x, weight], shift, shape, output)
        if joint is not None:
            codes = self.writer.quantized(output, joint.grid, self._type(joint.grid), len(shape))
            self.writer.reads[node.output[0]] = codes
        return place

    def _weight(self, linear: Linear, forms: Forms) -> tuple[np.ndarray, Grid, Placement]:
        """Values [in, out] and their grid, per tensor or per output channel."""
        values, grid = linear.weight, weight_grid(linear, grid_at(forms, "weight", 1))
        if grid_at(forms, "input", 0).per_channel:
            values = scaled_weight(values, grid_at(forms, "input", 0))
            return values, Grid.of_weight(values, 1, grid.bits), CARRYING
        return values, *self._weight_grid(values, grid, 1)

    def _weight_grid(self, values: np.ndarray, grid: Grid, axis: int) -> tuple[Grid, Placement]:
        """Per tensor, or along the `axis` of the output channels."""
        if grid.per_channel and grid.axis != axis:
            return Grid.of_weight(values, axis, grid.bits), AGAIN
        if grid.per_channel:
            return grid, Placement("integer", "weights with a scale for each output channel")
        if self.profile == "tensorrt":
            grid = grid.repeated(values.shape[axis], axis)
        return grid, Placement("integer", "weights with one scale")

    def _input(self, node: NodeProto, linear: Linear, x: str, grid: Grid) -> tuple[str, np.float32]:
        """The layer's input, quantized, and its one scale."""
        if grid.per_channel:
            norm = self._norm_of(linear.x)
            if norm is None:
                x = self._divide(x, grid)
            self.migrations.append(ScaleMigration(node.name, norm, len(grid.scale)))
            grid = grid.unit()
        rank = len(self.shapes[linear.x])
        return self.writer.quantized(x, grid, self._type(grid), rank, own=True), np.float32(grid.scale)

    def _norm_of(self, tensor: str) -> str | None:
        """The LayerNorm before, if it was divided by the scales: everything between only moves data."""
        node = maker(self.writer.graph.producer, tensor, KEEPING_LAST_AXIS)
        return node.name if node is not None and node.name in self.norms else None

    def _divide(self, x: str, grid: Grid) -> str:
        """`x` in steps of its channels' scales, made once for all layers that read it so."""
        done = self._divided.get(x)
        if done is None or not done[1].same(grid):
            reciprocal = self.writer.constant(f"{x}/reciprocal", np.float32(1) / grid.scale)
            done = self._divided[x] = self.writer.add("Mul", [x, reciprocal], f"{x}/divide"), grid
        return done[0]

    def _product(self, node: NodeProto, forms: Forms) -> Placement:
        """Of two activations: queries and keys, attention and values."""
        inputs = [self.writer.read(name) for name in node.input]
        place = self._problem(node, forms, ("input", "input"))
        if place is None:
            left, right = (grid_at(forms, "input", i) for i in (0, 1))
            if left.per_channel or right.per_channel:
                place = Placement("float", SCALES.format(unit_of_scales(left, right)))
            else:
                inputs = [self._operand(t, grid) for t, grid in zip(node.input, (left, right), strict=True)]
                shifted = right.zero_point or left.low * left.zero_point
                place = SHIFTED if shifted else ONE_SCALE
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
            read = self.writer.read(tensor)
            return self.writer.quantized(read, grid, self._type(grid), rank, own=True)
        before = self.writer.quantized(self.writer.read(move.input[0]), grid, self._type(grid), rank)
        self.writer.nodes = [node for node in self.writer.nodes if tensor not in node.output]
        self.writer.keep(move, [before])
        return tensor

    def _conv(self, node: NodeProto, forms: Forms) -> Placement:
        """As a product where it cuts patches, else in integers where its output is quantized too."""
        place, output = self._problem(node, forms, ("input", "weight")), forms.get(("output", 0))
        if place is None and grid_at(forms, "input", 0).per_channel:
            place = Placement("float", SCALES.format("channel"))
        patches = as_patches(self.writer.graph, self.shapes, node)
        if place is None and patches is not None:
            return self._patches(node, forms, patches)
        if place is None and (not isinstance(output, Grid) or not output.stored or output.per_channel):
            place = NO_OUTPUT
        if place is not None or not isinstance(output, Grid):
            self.writer.keep(node, map(self.writer.read, node.input))
            return place or FLOAT
        # ONNX Runtime has kernels of this for uint8 alone on x86.
        dtype = U8 if self.profile == "onnxruntime" else S8
        x = self.writer.read(node.input[0])
        if not self.writer.on_grid(x, grid_at(forms, "input", 0)):
            x = self.writer.quantized(x, grid_at(forms, "input", 0), dtype, 4)
        values = self.writer.graph.constants[node.input[1]]
        grid, place = self._weight_grid(values, grid_at(forms, "weight", 1), 0)
        inputs = [x, self.writer.weight(f"{node.name}/weight", values, grid), *node.input[2:]]
        if len(node.input) > 2 and self.profile == "onnxruntime":
            bias = self.writer.graph.constants[node.input[2]]
            step = grid_at(forms, "input", 0).scale * grid.scale
            inputs[2] = self.writer.integer_bias(f"{node.name}/bias", bias, step) or inputs[2]
        name = node.output[0]
        raw = self.writer.name(f"{name}/raw")
        self.writer.keep(node, inputs, [raw])
        final = name if name in self.writer.graph.outputs else None
        self.writer.reads[name] = self.writer.quantized(raw, output, dtype, 4, final)
        return place

    def _patches(self, node: NodeProto, forms: Forms, patches: Patches) -> Placement:
        """The output stays in floating point, as that of every product."""
        writer, stem, constants = self.writer, node.name, self.writer.graph.constants
        weight, place = self._weight_grid(constants[node.input[1]], grid_at(forms, "weight", 1), 0)
        rows = patches.cut(writer, stem, writer.read(node.input[0]))
        grid = grid_at(forms, "input", 0)
        x = writer.quantized(rows, grid, self._type(grid), 3)
        inputs = [x, writer.weight(f"{stem}/weight", patches.weight, weight.transposed())]
        bias = constants[node.input[2]] if len(node.input) > 2 else None
        shape = [self.shapes[node.input[0]][0], patches.count, len(patches.weight)]
        product = writer.name(f"{stem}/product")
        write_product(writer, stem, inputs, bias, shape, product)
        patches.as_image(writer, stem, product, node.output[0])
        return place._replace(why=f"a product of patches; {place.why}")
