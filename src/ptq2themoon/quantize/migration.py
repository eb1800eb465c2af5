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
from onnx import helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, copied, tensor_shapes
from ptq2themoon.graph.editing.operator_types import BIAS
from ptq2themoon.graph.forms.layernorms import is_padded, readers_of, scalable_norms
from ptq2themoon.graph.forms.linear import Linear, as_linear, linear_layers
from ptq2themoon.quantize.heads import Attentions
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
    attentions, inputs, found = Attentions(model, floating), first_inputs(planned), []
    for block in sorted({o.block for o in model.operators if o.block is not None}):
        values = attentions.values(block)
        if isinstance(values, str) or values.reader not in inputs:
            continue
        makers = {head.maker for head in values.heads}
        if len(makers) == 1 and _can_be_scaled(inputs[values.reader][1]):
            columns = np.concatenate([head.columns for head in values.heads])
            order = np.argsort(np.concatenate(values.rows))
            found.append(ValuePath(makers.pop(), values.reader, columns[order]))
    return found
