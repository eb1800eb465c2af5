"""Writes a fused graph anew, node by node, with QuantizeLinear and DequantizeLinear in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.kinds import Form, Formula
from ptq2themoon.graph.editing.one_message import check_model
from ptq2themoon.graph.editing.onnx_graph import Graph, copied, unique_name
from ptq2themoon.graph.editing.operator_types import DOMAIN, RMS_NORM
from ptq2themoon.graph.forms.rms_norm import written_out

U8 = np.dtype(np.uint8)
S8 = np.dtype(np.int8)
ONE = np.float32(1)


class Writer:
    """Collects the new graph's nodes in order.

    `reads` says under which name the new graph has a tensor of the old one: that of its last
    dequantized form. The zero point of uint8 is 128 more than that of int8: both store the same codes.

    Args:
        model: the fused model, which stays as it is.
        zero_points: whether the runtime has other zero points than 0.
    """

    def __init__(self, model: onnx.ModelProto, *, zero_points: bool = True) -> None:
        self.graph = Graph(model)
        self._zero_points = zero_points
        self.nodes: list[NodeProto] = []
        self.reads: dict[str, str] = {}
        self._forms: dict[str, tuple[Form, np.dtype]] = {}  # of dequantized tensors of the new graph
        self._sources: dict[str, str] = {}  # what they were quantized from
        self._made: dict[tuple[str, str], list[tuple[Form, np.dtype, str]]] = {}
        self._names = {name for n in self.graph.nodes for name in (n.name, *n.input, *n.output)}
        self._names |= set(self.graph.constants)

    def name(self, stem: str) -> str:
        """A name that nothing has yet."""
        name = unique_name(stem, self._names)
        self._names.add(name)
        return name

    def constant(self, stem: str, value: np.ndarray) -> str:
        """Add a constant under a new name like `stem`; returns the name."""
        name = self.name(stem)
        self.graph.constants[name] = value
        return name

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        stem: str,
        output: str | None = None,
        axis: int | None = None,
    ) -> str:
        """Append a node; returns its output's name."""
        output = output or self.name(f"{stem}/out")
        node = helper.make_node(op_type, inputs, [output], name=self.name(stem))
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return output

    def cast(self, stem: str, tensor: str, dtype: npt.DTypeLike) -> str:
        """Append a Cast to `dtype`; returns its output's name."""
        output = self.name(f"{stem}/out")
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes.append(helper.make_node("Cast", [tensor], [output], self.name(stem), to=to))
        return output

    def transposed(self, stem: str, tensor: str, axes: Sequence[int]) -> str:
        """Append a Transpose of `tensor` to the order `axes`; returns its output's name."""
        output = self.name(f"{stem}/out")
        self.nodes.append(helper.make_node("Transpose", [tensor], [output], self.name(stem), perm=axes))
        return output

    def keep(self, node: NodeProto, inputs: Iterable[str], outputs: Iterable[str] | None = None) -> None:
        """Append a node of the old graph, reading `inputs`."""
        if node.op_type == RMS_NORM:
            (x, gamma), (output,) = inputs, outputs or node.output
            self.nodes += written_out(node, x, gamma, output, self.name, self.constant)
            return
        node = copied(node)
        node.input[:] = inputs
        if outputs is not None:
            node.output[:] = outputs
        self.nodes.append(node)

    def read(self, tensor: str) -> str:
        """The new graph's name for a tensor of the old one."""
        return self.reads.get(tensor, tensor)

    def source(self, tensor: str) -> str:
        """What a dequantized tensor of the new graph was quantized from."""
        return self._sources[tensor]

    def stored_type(self, tensor: str) -> np.dtype | None:
        """Integer type of a dequantized tensor; None of any other."""
        found = self._forms.get(tensor)
        return found[1] if found and isinstance(found[0], Grid) else None

    def has_integers(self, grid: Grid) -> bool:
        """Whether integers of 8 bits of the runtime hold its codes."""
        return grid.stored and (self._zero_points or not grid.zero_point)

    def on_grid(self, tensor: str, form: Form) -> bool:
        """Whether `tensor` (of the new graph) was quantized to `form`, so that once more changes nothing."""
        found = self._forms.get(tensor)
        return found is not None and form.same(found[0])

    def quantized(
        self,
        tensor: str,
        grid: Form,
        dtype: np.dtype,
        rank: int,
        output: str | None = None,
        *,
        own: bool = False,
    ) -> str:
        """`tensor` (of the new graph) quantized and dequantized; made once for each grid and type.

        With `own`, anew for each reader: ONNX Runtime joins a DequantizeLinear with one product at most, and
        leaves other readers of it in floating point.

        Per channel it is divided by the vector of scales, quantized with scale 1 and multiplied again:
        no runtime has integer kernels for the other way, QuantizeLinear along an axis, and it is slow.
        """
        for made, of_type, name in self._made.get((tensor, "values"), []):
            if output is None and not own and grid.same(made) and of_type == dtype:
                return name
        stem = tensor
        if isinstance(grid, Formula):
            result = grid.written(self, tensor, rank, output)
        elif not self.has_integers(grid):
            result = self._rounded(tensor, grid, rank, output)
        elif grid.per_channel:
            scale = self.constant(f"{stem}/scale", grid.broadcast_scale(rank))
            codes = self.codes(self.add("Div", [tensor, scale], f"{stem}/divide"), grid.unit(), dtype)
            result = self.add("Mul", [codes, scale], f"{stem}/multiply", output)
        else:
            result = self.codes(tensor, grid, dtype, output)
        self._forms[result], self._sources[result] = (grid, dtype), tensor
        self._made.setdefault((tensor, "values"), []).append((grid, dtype, result))
        return result

    def codes(self, tensor: str, grid: Grid, dtype: np.dtype, output: str | None = None) -> str:
        """QuantizeLinear and DequantizeLinear, per tensor; clipped first where the grid is narrow."""
        stem = tensor
        if grid.narrow:
            bounds = [
                self.constant(f"{stem}/{side}", np.float32(code) * grid.scale)
                for side, code in (("low", grid.low), ("high", grid.high))
            ]
            tensor = self.add("Clip", [tensor, *bounds], f"{stem}/clip")
        scale = self.constant(f"{stem}/scale", grid.scale)
        zero = self.constant(f"{stem}/zero_point", np.array(grid.zero_point + 128 * (dtype == U8), dtype))
        integer = self.add("QuantizeLinear", [tensor, scale, zero], f"{stem}/quantize")
        return self.add("DequantizeLinear", [integer, scale, zero], f"{stem}/dequantize", output)

    def _rounded(self, tensor: str, grid: Grid, rank: int, output: str | None) -> str:
        """In floating point, with the same values: more than 8 bits, or a zero point that a runtime lacks."""
        scale = self.constant(f"{tensor}/scale", grid.broadcast_scale(rank))
        bounds = [
            self.constant(f"{tensor}/{s}", np.array(v, np.float32))
            for s, v in (("low", grid.low), ("high", grid.high))
        ]
        codes = self.add("Round", [self.add("Div", [tensor, scale], f"{tensor}/divide")], f"{tensor}/round")
        clipped = self.add("Clip", [codes, *bounds], f"{tensor}/clip")
        return self.add("Mul", [clipped, scale], f"{tensor}/multiply", output)

    def weight(self, stem: str, value: np.ndarray, grid: Grid, factors: np.ndarray | np.float32 = ONE) -> str:
        """A constant as int8 and its DequantizeLinear, per tensor or along the grid's axis.

        Args:
            factors: what the quantized values are multiplied by, 0-d or [out]; the scales take it on, so
                that no code changes.
        """
        if not self.has_integers(grid):
            return self.constant(f"{stem}/values", grid.values(value) * factors)
        integer = self.constant(f"{stem}/codes", (grid.codes(value) + grid.zero_point).astype(np.int8))
        grid = grid.times(factors)
        scale = self.constant(f"{stem}/scale", grid.scale)
        zero = self.constant(f"{stem}/zero_point", np.full(grid.scale.shape, grid.zero_point, np.int8))
        return self.add("DequantizeLinear", [integer, scale, zero], f"{stem}/dequantize", axis=grid.axis)

    def integer_bias(self, stem: str, value: np.ndarray, scale: np.ndarray) -> str | None:
        """A bias as int32 in steps of a product's scale, 0-d or [out], and its DequantizeLinear.

        None where it does not fit: weights that are next to zero have next to no scale.
        """
        codes = np.rint(value.astype(np.float64) / scale)
        if np.abs(codes).max() >= 2**31:
            return None
        integer = self.constant(f"{stem}/codes", codes.astype(np.int32))
        step = self.constant(f"{stem}/scale", np.asarray(scale, np.float32))
        axis = 0 if np.ndim(scale) else None
        return self.add("DequantizeLinear", [integer, step], f"{stem}/dequantize", axis=axis)

    def scaled_weight(self, stem: str, value: np.ndarray, grid: Grid) -> str:
        """As `weight`, for scales along the reduction axis, which integer kernels cannot take.

        ONNX Runtime would read them as scales of the output channels wherever the counts agree, so
        they are a multiplication of their own.
        """
        whole = self.weight(stem, grid.codes(value), grid.unit())
        scale = self.constant(f"{stem}/scales", grid.broadcast_scale(value.ndim))
        return self.add("Mul", [whole, scale], f"{stem}/multiply")

    def finish(self) -> onnx.ModelProto:
        """The model of all nodes written; checked."""
        self.graph.nodes = self.nodes
        model = self.graph.finish()
        model.ClearField("functions")
        opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
        model.ClearField("opset_import")
        model.opset_import.extend(opsets)
        check_model(model, full=True)
        return model
