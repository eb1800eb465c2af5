"""Scales of channels that move from what a linear layer reads into its weights: the function stays.

Two places can take them at no cost: the LayerNorm before a layer, and the layer that makes the values of an
attention, for a softmax mixes tokens and leaves each channel its own. Methods that rewrite a model choose
the factors; how they are put in force is here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, copied, tensor_shapes
from ptq2themoon.graph.editing.operator_types import BIAS, DATA_MOVEMENT
from ptq2themoon.graph.forms.layernorms import is_padded, readers_of, scalable_norms
from ptq2themoon.graph.forms.linear import Linear, as_linear, linear_layers
from ptq2themoon.quantize.program import Step
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel

Parameters = dict[tuple[str, int], np.ndarray]  # by operator and position


@dataclass(frozen=True)
class NormGroup:
    """A LayerNorm and the quantized linear layers that alone read it.

    Attributes:
        per_channel: the slot of each reader's input, with the way in which it is observed per channel.
    """

    norm: str
    readers: list[str]
    per_channel: dict[Slot, QuantizedTensor]

    def weight(self, model: QuantizedModel) -> np.ndarray:
        """Of all readers side by side, [in, outputs of all]."""
        return np.concatenate([layer.weight for layer in _layers(model, self.readers)], 1)

    def rescale(self, model: QuantizedModel, factors: np.ndarray, shift: np.ndarray | float = 0.0) -> None:
        """Let the LayerNorm make (y + shift) / factors where it made y; its readers undo it.

        gamma' = gamma / r, beta' = (beta + shift) / r, W'[c, :] = r_c W[c, :], b' = b - shift W. A beta or
        bias that is not there is made where there is a shift.

        Args:
            factors, shift: float64 [channels].
        """
        graph, shifted = model.graph(), bool(np.any(shift))
        (norm,) = (node for node in graph.nodes if node.name == self.norm)
        gamma, *beta = (graph.constants[name].astype(np.float64) for name in norm.input[1:])
        values: Parameters = {(norm.name, 1): gamma / factors}
        if beta or shifted:
            values[norm.name, 2] = ((beta[0] if beta else 0.0) + shift) / factors
        for layer in _layers(model, self.readers):
            weight = layer.weight.astype(np.float64)
            values[layer.name, 1] = layer.stored(weight * factors[:, None])
            if shifted:
                bias = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
                values[layer.name, BIAS] = bias - shift @ weight
        model.set_parameters(values, equal=True)


def _layers(model: QuantizedModel, names: Sequence[str]) -> list[Linear]:
    found = {layer.name: layer for layer in linear_layers(model.graph())}
    return [found[name] for name in names]


def norm_groups(
    model: QuantizedModel, planned: Sequence[QuantizedOperator], past: Collection[str]
) -> list[NormGroup]:
    """LayerNorms that quantized linear layers alone read, their inputs all quantized in one way, per tensor.

    Args:
        planned: what the recipe quantizes.
        past: types of operators that may stand between LayerNorm and layer.
    """
    graph, shapes = model.graph(), tensor_shapes(model.edited)
    inputs = first_inputs(planned)
    groups = []
    for norm in scalable_norms(graph):
        readers = readers_of(graph, shapes, norm, past) or []
        found = [inputs[r.name] for r in readers if r.name in inputs and _can_be_scaled(inputs[r.name][1])]
        linear = all(as_linear(graph, reader) is not None for reader in readers)
        if not readers or len(found) < len(readers) or not linear:
            continue
        padded = is_padded(graph, norm, readers)
        per_channel = {slot: _per_channel(t, slot, graph, shapes, padded) for slot, t in found}
        if len({(t.spec, t.axis) for t in per_channel.values()}) > 1:
            continue
        groups.append(NormGroup(norm.name, [reader.name for reader in readers], per_channel))
    return groups


def first_inputs(planned: Sequence[QuantizedOperator]) -> dict[str, tuple[Slot, QuantizedTensor]]:
    """The quantized activation at position 0 of each operator that has one, by name."""
    return {
        item.operator.name: (item.slot(tensor), tensor)
        for item in planned
        for tensor in item.tensors
        if (tensor.operand, tensor.position) == ("input", 0)
    }


def _can_be_scaled(tensor: QuantizedTensor) -> bool:
    return tensor.spec.kind == "uniform" and tensor.granularity == "per-tensor"


def _per_channel(
    tensor: QuantizedTensor, slot: Slot, graph: Graph, shapes: Shapes, padded: bool
) -> QuantizedTensor:
    (node,) = (node for node in graph.nodes if node.name == slot.operator)
    spec = replace(tensor.spec, granularity="per-channel")
    if spec.observer != "percentiles":
        spec = replace(spec, observer="minmax")
    if padded:
        spec = replace(spec, symmetry="symmetric", codes="signed")
    return replace(tensor, spec=spec, axis=len(shapes[node.input[0]]) - 1)


@dataclass(frozen=True)
class ValuePath:
    """The values of an attention, from the layer that makes them to the quantized layer after attention.

    Attributes:
        maker: of the values, and maybe of queries and keys too.
        reader: the projection after attention.
        columns: which of the maker's outputs becomes each of the reader's inputs, int64 [channels].
    """

    maker: str
    reader: str
    columns: np.ndarray

    def weight(self, model: QuantizedModel) -> np.ndarray:
        """Of the reader, [in, out]."""
        return _layers(model, [self.reader])[0].weight

    def rescale(self, model: QuantizedModel, factors: np.ndarray) -> None:
        """Let the maker give values divided by `factors`, float64 [channels]; the reader undoes it."""
        maker, reader = _layers(model, [self.maker, self.reader])
        weight = maker.weight.astype(np.float64)
        weight[:, self.columns] /= factors
        values: Parameters = {(self.maker, 1): maker.stored(weight)}
        if maker.bias is not None:
            bias = maker.bias.astype(np.float64)
            bias[self.columns] /= factors
            values[self.maker, BIAS] = bias
        values[self.reader, 1] = reader.stored(reader.weight.astype(np.float64) * factors[:, None])
        model.set_parameters(values, equal=True)


@dataclass(frozen=True)
class Multiplied:
    """A quantized linear layer before which a multiplication takes the factors: nothing there can carry them.

    Attributes:
        slot: of its input.
        input: how that is quantized.
    """

    reader: str
    slot: Slot
    input: QuantizedTensor

    def weight(self, model: QuantizedModel) -> np.ndarray:
        """Of the layer, [in, out]."""
        return _layers(model, [self.reader])[0].weight

    def rescale(self, model: QuantizedModel, factors: np.ndarray) -> None:
        """Divide what the layer reads by `factors`, float64 [channels]; its weight undoes it."""
        graph = model.graph()
        (node,) = (node for node in graph.nodes if node.name == self.reader)
        layer = _layers(model, [self.reader])[0]
        reciprocal = graph.free_tensor(f"{self.reader}/reciprocal")
        divided = graph.free_tensor(f"{self.reader}/divided")
        new = copied(node)
        new.input[0] = divided
        name = f"{self.reader}/factors"
        multiply = helper.make_node("Mul", [node.input[0], reciprocal], [divided], name=name)
        constants = {reciprocal: (1 / factors).astype(np.float32)}
        model.replace_operators({self.reader: [multiply, new]}, constants, equal=True)
        weight = layer.weight.astype(np.float64) * factors[:, None]
        model.set_parameters({(self.reader, 1): layer.stored(weight)}, equal=True)


def multiplied(model: QuantizedModel, planned: Sequence[QuantizedOperator]) -> list[Multiplied]:
    """Every linear layer whose input is quantized per tensor."""
    layers, inputs = linear_layers(model.graph()), first_inputs(planned)
    found = [(layer.name, *inputs[layer.name]) for layer in layers if layer.name in inputs]
    return [Multiplied(*each) for each in found if _can_be_scaled(each[2])]


def value_paths(
    model: QuantizedModel, floating: SimulatedModel, planned: Sequence[QuantizedOperator]
) -> list[ValuePath]:
    """Of each attention whose values pass from layer to layer, each channel by itself.

    Args:
        floating: the model in floating point.
        planned: what the recipe quantizes.
    """
    shapes = tensor_shapes(model.rewritten, batch=1)
    layers = {layer.name for layer in linear_layers(model.graph())}
    places = {(o.role, o.block): o.name for o in model.operators}
    inputs, found = first_inputs(planned), []
    for block in sorted({o.block for o in model.operators if o.block is not None}):
        maker = places.get(("v", block)) or places.get(("qkv", block))
        context, reader = places.get(("attn_context", block)), places.get(("proj", block))
        if maker not in layers or reader not in layers or context is None or reader not in inputs:
            continue
        assert maker is not None
        assert reader is not None
        columns = _Trace(floating, shapes, maker, context, reader).columns()
        if columns is not None and _can_be_scaled(inputs[reader][1]):
            found.append(ValuePath(maker, reader, columns))
    return found


class _Trace:
    """Numbers of channels sent through the operators between two layers, to see where each arrives."""

    def __init__(
        self, floating: SimulatedModel, shapes: Shapes, maker: str, context: str, reader: str
    ) -> None:
        self.program, self.shapes = floating.program(), shapes
        self.maker, self.context, self.reader = maker, context, reader
        self.known: dict[str, Tensor] = {}
        self.outputs, self.device = floating.outputs, floating.device

    def columns(self) -> np.ndarray | None:
        """Which output of the maker is each input of the reader; None where that is no single one."""
        values: Tensor | None = None
        arrived: Tensor | None = None
        elsewhere = [torch.zeros(1, device=self.device)]
        for step in self.program.steps:
            read = [i.name for i in step.inputs if i.name in self.known]
            if step.name == self.maker:
                if not self._start(step):
                    return None
            elif step.name == self.context and values is None:
                values = self._mixed(step)
                if values is None:
                    return None
            elif step.name == self.reader:
                arrived = self.known.get(step.inputs[0].name)
            elif read and self._moves(step):
                self.program.advance(step, self.known)
            else:
                found = [self.known[name] for name in read]
                elsewhere += [value.flatten() for value in found if value.is_floating_point()]
        if values is None or arrived is None or any(name in self.known for name in self.outputs):
            return None
        rows = arrived.flatten(0, -2)
        single = bool((rows == rows[0]).all()) and len(rows[0].unique()) == len(rows[0])
        used = bool(torch.isin(values.unique(), torch.cat(elsewhere)).any())
        return None if used or not single or not bool(rows[0].all()) else rows[0].long().cpu().numpy() - 1

    def _start(self, step: Step) -> bool:
        """Number the channels that the maker gives, from 1; 0 is what a Pad puts beside them."""
        name = step.outputs[0][0]
        shape = self.shapes.get(name, ())
        sizes = [size for size in shape if isinstance(size, int)]
        if not sizes or len(sizes) < len(shape):
            return False
        self.known[name] = torch.arange(1.0, sizes[-1] + 1, device=self.device).expand(sizes)
        return True

    def _mixed(self, step: Step) -> Tensor | None:
        """The values that an attention mixes over tokens; its output has their numbers."""
        left, right = (i.name for i in step.inputs)
        value, shape = self.known.get(right), self.shapes.get(step.outputs[0][0], ())
        if left in self.known or value is None or not all(isinstance(size, int) for size in shape):
            return None
        if not bool((value == value[..., :1, :]).all()) or len(shape) != value.ndim:
            return None
        self.known[step.outputs[0][0]] = value[..., :1, :].expand([int(size) for size in shape])
        return value

    def _moves(self, step: Step) -> bool:
        if step.operation.type not in DATA_MOVEMENT | {"Shape"}:
            return False
        return all(i.constant is not None or i.name in self.known or not i.name for i in step.inputs)
