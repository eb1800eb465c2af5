"""Shift what linear layers read by a constant for each channel, and take its effect out of their biases.

With t the shift, x W + b = (x + t) W + (b - t W): the layer's output in floating point stays what it is, and
its quantizer sees x + t. The shift costs nothing where a LayerNorm makes x and its beta takes t; elsewhere an
Add does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, copied, tensor_shapes
from ptq2themoon.graph.editing.operator_types import BIAS
from ptq2themoon.graph.forms.layernorms import is_padded, readers_of, scalable_norms
from ptq2themoon.graph.forms.linear import Linear, linear_layers
from ptq2themoon.quantize.calibration import fit
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.tensors import QuantizedOperator, Slot


@dataclass(frozen=True)
class Shiftable:
    """Linear layers whose input can be shifted together.

    Attributes:
        norm: the LayerNorm whose beta takes the shift; None where an Add before each layer does.
        readers: names of the layers.
    """

    norm: str | None
    readers: tuple[str, ...]


def shiftable(model: QuantizedModel, layers: Sequence[str]) -> Iterator[Shiftable]:
    """How the inputs of these linear layers can be shifted, in graph order; each layer is in one group.

    Layers behind one LayerNorm are a group with it where nothing else reads it and no zeros are padded in
    between; others are a group with those that read the same tensor.
    """
    graph, shapes = model.graph(), tensor_shapes(model.edited)
    found = {name: norm.name for norm, names in _norms(graph, shapes, set(layers)) for name in names}
    groups: dict[tuple[str | None, str], list[str]] = {}
    for node in graph.nodes:
        if node.name in layers:
            norm = found.get(node.name)
            groups.setdefault((norm, "" if norm else node.input[0]), []).append(node.name)
    for (norm, _), names in groups.items():
        yield Shiftable(norm, tuple(names))


def _norms(graph: Graph, shapes: Shapes, layers: set[str]) -> Iterator[tuple[NodeProto, list[str]]]:
    for norm in scalable_norms(graph):
        readers = readers_of(graph, shapes, norm)
        names = [reader.name for reader in readers or ()]
        if readers and layers.issuperset(names) and not is_padded(graph, norm, readers):
            yield norm, names


def quantized_weight(layer: Linear, quantizer: Quantizer | None) -> np.ndarray:
    """The weight of a layer on its quantizer's grid, float64 [in, out]; as it is where there is none."""
    if quantizer is None:
        return layer.weight.astype(np.float64)
    stored = torch.tensor(layer.stored(layer.weight))
    return layer.stored(quantizer(stored).double().numpy())  # turned twice is as it was


def planned_weight(layer: Linear, plan: Iterable[QuantizedOperator]) -> np.ndarray:
    """As `quantized_weight`, as the recipe will quantize it, if it does."""
    for item in plan:
        for tensor in item.tensors:
            if item.operator.name == layer.name and (tensor.operand, tensor.position) == ("weight", 1):
                stored = torch.tensor(layer.stored(layer.weight))
                return quantized_weight(layer, fit(item.slot(tensor), tensor, stored))
    return quantized_weight(layer, None)


def shift(model: QuantizedModel, group: Shiftable, amount: np.ndarray) -> None:
    """Shift what the group reads by `amount` [channels]; the output in floating point stays equal."""
    graph = model.graph()
    nodes = {node.name: node for node in graph.nodes}
    values = {}
    for layer in linear_layers(graph):
        if layer.name in group.readers:
            bias = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
            values[layer.name, BIAS] = bias - amount @ layer.weight.astype(np.float64)
    if group.norm is not None:
        norm = nodes[group.norm]
        beta = graph.constants[norm.input[2]].astype(np.float64) if len(norm.input) > 2 else 0.0
        values[group.norm, 2] = beta + amount
    model.set_parameters(values, equal=True)
    if group.norm is None:
        for name in group.readers:
            _add_before(model, name, amount)


def remove_shift(
    model: QuantizedModel, amounts: Mapping[str, np.ndarray]
) -> dict[tuple[str, int], np.ndarray]:
    """Biases without what shifts make of the weights' rounding, t (W^ - W), by operator and position.

    A weight that a method rounded on what the layer reads made up for the shift there: its bias stays.

    Args:
        amounts: by which the input of each layer was shifted; the model is calibrated.
    """
    exact = {layer.name: layer.weight for layer in linear_layers(Graph(model.rewritten))}
    found = {}
    for layer in linear_layers(model.graph()):
        if layer.name in amounts and np.array_equal(layer.weight, exact[layer.name]):
            quantizers = (t.ready() for slot, t in model.slots() if slot == Slot(layer.name, "weight", 1))
            rounded = quantized_weight(layer, next(quantizers, None))
            bias = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
            left = amounts[layer.name] @ (rounded - exact[layer.name].astype(np.float64))
            found[layer.name, BIAS] = (bias - left).astype(np.float32)
    return found


def _add_before(model: QuantizedModel, reader: str, amount: np.ndarray) -> None:
    """Put an Add of `amount` between a layer and what it reads, or let the one that is there add more."""
    graph = model.graph()
    (node,) = (node for node in graph.nodes if node.name == reader)
    before = graph.producer(node.input[0])
    if before is not None and before.name == _name(reader):
        there = graph.constants[before.input[1]].astype(np.float64)
        model.set_parameters({(before.name, 1): there + amount}, equal=True)
        return
    constant = graph.free_tensor(f"{_name(reader)}/amount")
    shifted = graph.free_tensor(f"{_name(reader)}/output")
    add = helper.make_node("Add", [node.input[0], constant], [shifted], name=_name(reader))
    new = copied(node)
    new.input[0] = shifted
    model.replace_operators({reader: [add, new]}, {constant: np.asarray(amount, np.float32)}, equal=True)


def _name(reader: str) -> str:
    return f"{reader}/shift"
