"""Queries, keys and values that one layer computes, quantized once for all products that read them.

Each product reads its part of the layer's output by a scale of its own. Only data movement and scalar
factors lie between, so the layer can compute every part in steps of one common scale: the scales of its
weights, per output channel, and its biases take on the ratios. Queries and keys meet in one product, which
stays what it was where the common scale is the root of theirs. Values come out larger or smaller by a
factor, which the next layer's weights undo. No code of a weight or an activation changes but at rounding
ties; one quantization takes the place of three, and integers are moved in the place of floats.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from ptq2themoon.deploy.deploy_report import Placement
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.integers import grid_at, problem
from ptq2themoon.deploy.kinds import Forms
from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, fixed_batch, tensor_shapes
from ptq2themoon.graph.editing.operator_types import RESHAPING
from ptq2themoon.graph.forms.gelu import scalar_operand
from ptq2themoon.graph.forms.linear import as_linear, is_product
from ptq2themoon.vocabulary.recipe_language import Operand

MOVING = RESHAPING | {"Split"}  # ONNX Runtime moves the integers themselves through these


@dataclass(frozen=True, eq=False)
class JointCodes:
    """How the output of one layer becomes codes of one scale.

    Attributes:
        layer: its name.
        grid: of its output, per tensor.
        factors: [out], what each output channel is multiplied by.
        scalings: names of the multiplications that the factors take on.
        read: grids by which operators read from now on, by name and position of the input.
        undone: what the weights of later layers are multiplied by, by the layers' names.
    """

    layer: str
    grid: Grid
    factors: np.ndarray
    scalings: frozenset[str]
    read: dict[tuple[str, int], Grid]
    undone: dict[str, np.float32]


class _Part(NamedTuple):
    """What one product reads of the layer's output: these channels, multiplied by `factor`."""

    product: NodeProto
    position: int
    channels: np.ndarray
    factor: float
    scalings: tuple[str, ...]


def joint_codes(graph: Graph, forms: Mapping[str, Forms]) -> dict[str, JointCodes]:
    """By name, the layers whose output is read only by products of two activations, in two parts or more.

    Args:
        forms: how each operator's tensors are quantized, by the operator's name.
    """
    search = _Search(graph, tensor_shapes(graph.model, fixed_batch(graph.model) or 1), forms)
    found: dict[str, JointCodes] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        joint = search.joint(node)
        if joint is not None and taken.isdisjoint(joint.undone):  # a layer undoes one factor
            found[joint.layer] = joint
            taken.update(joint.undone)
    return found


@dataclass(frozen=True, eq=False)
class _Search:
    """Among the layers of one graph."""

    graph: Graph
    shapes: Shapes
    forms: Mapping[str, Forms]

    def joint(self, layer: NodeProto) -> JointCodes | None:
        """How the layer's output becomes codes of one scale; None where it cannot."""
        shape = self.shapes.get(layer.output[0], ())
        if len(shape) < 3 or not all(isinstance(n, int) for n in shape) or not self._in_integers(layer):
            return None
        parts = self._parts(layer, [int(n) for n in shape])
        if parts is None or len(parts) < 2 or _overlap(parts):
            return None
        if any(self._problem(part.product, "input") is not None for part in parts):
            return None
        grids = [self._grid(part.product, part.position) for part in parts]
        if any(grid.per_channel or grid.narrow or grid.zero_point for grid in grids):
            return None
        undoing = self._undoing(parts)
        common = self._common_scale(parts, undoing)
        return None if common is None else self._in_steps(layer.name, int(shape[-1]), parts, common, undoing)

    def _problem(self, node: NodeProto, second: Operand) -> Placement | None:
        return problem(self.forms.get(node.name, {}), ("input", second), "onnxruntime")

    def _in_integers(self, node: NodeProto) -> bool:
        return as_linear(self.graph, node) is not None and self._problem(node, "weight") is None

    def _grid(self, node: NodeProto, position: int) -> Grid:
        return grid_at(self.forms[node.name], "input", position)

    def _parts(self, layer: NodeProto, shape: list[int]) -> list[_Part] | None:
        """What products read of the layer's output; None where something else reads it too.

        The numbers of the channels are moved as the graph moves the values.
        """
        numbers = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
        waiting: list[tuple[str, np.ndarray, float, tuple[str, ...]]] = [(layer.output[0], numbers, 1.0, ())]
        parts = []
        while waiting:
            tensor, channels, factor, scalings = waiting.pop()
            if tensor in self.graph.outputs:
                return None
            for reader in self.graph.consumers(tensor):
                if (moved := self._moved(reader, tensor, channels)) is not None:
                    outputs = zip(reader.output, moved, strict=True)
                    waiting += [(name, value, factor, scalings) for name, value in outputs]
                elif (scalar := self._scalar(reader, channels.ndim)) is not None:
                    waiting.append((reader.output[0], channels, factor * scalar, (*scalings, reader.name)))
                elif is_product(self.graph, reader) and reader.input[0] != reader.input[1]:
                    position = list(reader.input).index(tensor)
                    read = np.unique(channels).astype(np.int64)
                    parts.append(_Part(reader, position, read, factor, scalings))
                else:
                    return None
        return parts

    def _moved(self, node: NodeProto, tensor: str, value: np.ndarray) -> list[np.ndarray] | None:
        """`value` after an operator that moves `tensor`; None for any other operator."""
        others = [name for name in node.input[1:] if name]
        constant = all(name in self.graph.constants for name in others)
        if node.op_type not in MOVING or node.input[0] != tensor or not constant:
            return None
        feeds = {tensor: value} | {name: self.graph.constants[name] for name in others}
        opset = next(o.version for o in self.graph.model.opset_import if o.domain == "")
        return list(ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds))

    def _scalar(self, node: NodeProto, rank: int) -> float | None:
        """By what a Mul multiplies, if by one positive constant that adds no dimension."""
        scaled = scalar_operand(self.graph, node, "Mul")
        if scaled is None or scaled[1] <= 0 or len(self.shapes.get(node.output[0], ())) != rank:
            return None
        return scaled[1]

    def _undoing(self, parts: list[_Part]) -> dict[str, NodeProto | None]:
        """Of each product, by name, the layer that undoes a factor; None if none can, or two parts meet."""
        read = Counter(part.product.name for part in parts)
        products = {part.product.name: part.product for part in parts}
        return {name: self._after(node) if read[name] == 1 else None for name, node in products.items()}

    def _after(self, product: NodeProto) -> NodeProto | None:
        """The layer that alone reads the product's output, if its weights can take on a factor."""
        node = product
        while node is product or node.op_type in RESHAPING:
            readers = self.graph.consumers(node.output[0])
            alone = len(readers) == 1 and node.output[0] not in self.graph.outputs
            if not alone or readers[0].input[0] != node.output[0]:
                return None
            node = readers[0]
        return node if self._in_integers(node) and not self._grid(node, 0).per_channel else None

    def _common_scale(self, parts: list[_Part], undoing: Mapping[str, NodeProto | None]) -> np.float32 | None:
        """That for which each product stays what it was, or a later layer can undo what it became."""
        scales: dict[str, list[float]] = {name: [] for name in undoing}
        for part in parts:
            scales[part.product.name].append(float(self._grid(part.product, part.position).scale))
        wanted = {
            found[0] if len(found) == 1 else math.sqrt(math.prod(found))
            for name, found in scales.items()
            if undoing[name] is None
        }
        if len(wanted) > 1:
            return None
        return np.float32(wanted.pop() if wanted else scales[parts[0].product.name][0])

    def _in_steps(
        self,
        layer: str,
        channels: int,
        parts: list[_Part],
        common: np.float32,
        undoing: Mapping[str, NodeProto | None],
    ) -> JointCodes:
        """Every part in steps of the `common` scale."""
        factors = np.ones(channels, np.float32)
        read, undone = {}, {}
        grid = replace(self._grid(parts[0].product, parts[0].position), scale=np.array(common))
        for part in parts:
            scale = self._grid(part.product, part.position).scale
            factors[part.channels] = part.factor * float(common) / float(scale)
            read[part.product.name, part.position] = grid
            if (later := undoing[part.product.name]) is not None:
                before, ratio = self._grid(later, 0), common / scale
                read[later.name, 0] = replace(before, scale=np.asarray(before.scale * ratio))
                undone[later.name] = np.float32(1 / ratio)
        scalings = frozenset(chain.from_iterable(part.scalings for part in parts))
        return JointCodes(layer, grid, factors, scalings, read, undone)


def _overlap(parts: list[_Part]) -> bool:
    """Whether a channel is read twice, so that it would need two factors."""
    read = np.concatenate([part.channels for part in parts])
    return len(np.unique(read)) < len(read)
