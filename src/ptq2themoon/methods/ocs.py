"""Outlier channel splitting: the channel with the largest value becomes two, each with a share of it.

Zhao, Hu, Dotzel, De Sa and Zhang, "Improving Neural Network Quantization without Retraining using Outlier
Channel Splitting", ICML 2019, arXiv 1901.09504, sections 3.2 to 3.4. With a share of the input channels of a
layer more, ceil(ratio * channels), picked one by one, its range is smaller and its steps are finer:

    weights      x is duplicated, w becomes (w - s/2) / 2 and (w + s/2) / 2, s the scale: their codes add up
                 to the code that w had with s (equation 6), so with the scale of before nothing changes
    activations  x becomes x / 2 and x / 2, w is duplicated

A Gather before the layer duplicates channels. The halves of activations need a place that makes them: gamma
and beta of a LayerNorm that linear layers alone read, or, for the projection after attention, the layer that
makes the values. fc2's input has none, for GELU is not linear: there weights alone are split.

Where this differs from the paper or its released code:
- A channel that is picked again is parted in n equal shares, x / n or (w + s (i - (n - 1) / 2)) / n for
  i = 0 to n - 1, whose codes add up as well; the paper halves halves.
- Weights with a scale for each output channel: what is picked is the input channel whose parting lowers the
  sum of the output channels' maxima most. With one scale that is the paper's.
- The paper splits activations too and finds that it seldom helps. Channels are picked by the largest
  magnitude on the calibration images; its code counts outliers.
- The scale is that of the recipe's observer for the split weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
from onnx import helper
from pydantic import Field

from ptq2themoon.graph.editing.onnx_graph import copied, tensor_shapes
from ptq2themoon.graph.editing.operator_types import LINEAR_TYPES
from ptq2themoon.graph.forms.linear import Linear, linear_layers
from ptq2themoon.methods.base import Method, refuse_fixed, refuse_trained
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

    Planned = dict[str, tuple[Slot, QuantizedTensor]]

Ratio = Annotated[float, Field(ge=0, le=1)]

SHIFTING = ("adalog", "noisyquant")  # they know the channels that they shifted


class OCSSettings(Strict):
    """How many channels there are more; with both 0 the method changes nothing."""

    weights: Ratio = 0.02
    """Of a layer's input channels, split for its weights."""
    activations: Ratio = 0.0
    """Of a layer's input channels, split for its input, where something before it can make the shares."""
    shrink: bool = True
    """Scales of weights shrink to the new range; false: they stay, and the split weights change nothing."""


class OCS(Method):
    """Needs a recipe that quantizes linear layers with kind uniform."""

    Settings = OCSSettings
    settings: OCSSettings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose channels, rewrite what makes them, and widen the layers."""
        if not (self.settings.weights or self.settings.activations):
            return
        refuse_trained("ocs", tools)
        for other in SHIFTING:
            if other in tools.prepared:
                raise UserError(
                    f"ocs: {other} has shifted channels that ocs would duplicate; name ocs before it"
                )
        weights = _planned_weights(model, tools)
        counts = self._activation_counts(model, tools) if self.settings.activations else {}
        if not weights and not counts:
            raise UserError(
                "ocs: the recipe quantizes no linear layer's weights with kind uniform, per tensor or output "
                "channel, and no input that can be split; leave the method out"
            )
        for layer in progress(linear_layers(model.graph()), desc="ocs"):
            rows = counts.get(layer.name, np.ones(len(layer.weight), np.int64))
            order = np.repeat(np.arange(len(rows)), rows)
            weight = layer.weight.astype(np.float64)[order] / rows[order, None]
            if layer.name in weights and self.settings.weights:
                weight, again = self._split_weight(model, tools, layer, weight, weights[layer.name])
                order = order[again]
            if len(order) > len(rows):
                _widen(model, layer, order, weight)

    def _activation_counts(self, model: QuantizedModel, tools: Tools) -> dict[str, np.ndarray]:
        """Shares of each input channel by layer; what makes the channels gives these shares afterwards."""
        groups, paths = tools.norm_groups(model), tools.value_paths(model)
        read = {path.reader for path in paths} | {name for group in groups for name in group.readers}
        refuse_fixed("ocs", tools, read, "whose range splitting changes", "say activations: 0 for ocs")
        maxima = tools.input_maxima(model, {g.readers[0] for g in groups} | {path.reader for path in paths})
        found = {}
        for path in paths:
            found[path.reader] = _counts(maxima[path.reader], self.settings.activations)
            path.rescale(model, found[path.reader].astype(np.float64))
        for group in groups:
            counts = _counts(maxima[group.readers[0]], self.settings.activations)
            group.rescale(model, counts.astype(np.float64))
            found |= dict.fromkeys(group.readers, counts)
        return found

    def _split_weight(
        self,
        model: QuantizedModel,
        tools: Tools,
        layer: Linear,
        weight: np.ndarray,
        planned: tuple[Slot, QuantizedTensor],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The weight with split rows, float64 [in and more, out], and the row that each comes from."""
        slot, tensor = planned
        counts = picked(weight, self.settings.weights, each=tensor.axis is not None)
        order = np.repeat(np.arange(len(counts)), counts)
        plain = weight[order] / counts[order, None] if self.settings.shrink else weight
        quantizer = tools.fitted(slot, tensor, layer.stored(plain))
        model.fixed[slot] = quantizer
        return shares(weight, counts, quantizer.scale.double().numpy()), order


def _planned_weights(model: QuantizedModel, tools: Tools) -> Planned:
    """Weights of linear layers that are quantized with one scale, or one for each output channel."""
    layers = {layer.name: layer for layer in linear_layers(model.graph())}
    return {
        item.operator.name: (item.slot(tensor), tensor)
        for item in tools.plan(model)
        for tensor in item.tensors
        if item.operator.name in layers
        and (tensor.operand, tensor.position, tensor.spec.kind) == ("weight", 1, "uniform")
        and tensor.axis != layers[item.operator.name].input_axis
    }


def _counts(maxima: np.ndarray, ratio: float) -> np.ndarray:
    """In how many shares each channel is parted, int64 [channels], so that the largest share is small."""
    counts = np.ones(len(maxima), np.int64)
    for _ in range(math.ceil(ratio * len(maxima))):
        counts[np.argmax(maxima / counts)] += 1
    return counts


def picked(weight: np.ndarray, ratio: float, *, each: bool) -> np.ndarray:
    """In how many shares each input channel of a weight [in, out] is parted, int64 [in].

    Args:
        each: whether each output channel has a scale, so that the sum of their maxima counts.
    """
    size = np.abs(weight) if each else np.abs(weight).max(1, keepdims=True)
    if not each:
        return _counts(size[:, 0], ratio)
    counts = np.ones(len(weight), np.int64)
    columns = np.arange(size.shape[1])
    for _ in range(math.ceil(ratio * len(weight))):
        now = size / counts[:, None]
        first = now.argmax(0)
        top = now[first, columns]
        others = now.copy()
        others[first, columns] = 0
        after = np.maximum(others.max(0), size[first, columns] / (counts[first] + 1))
        gains = np.bincount(first, weights=top - after, minlength=len(weight))
        counts[np.argmax(gains)] += 1
    return counts


def shares(weight: np.ndarray, counts: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Rows of a weight [in, out] parted so that the codes of the parts add up to the whole's.

    Args:
        step: scale, 0-d or [out].
    """
    order = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its channel
    offset = number - (counts[order] - 1) / 2
    return (weight[order] + offset[:, None] * step) / counts[order, None]


def _widen(model: QuantizedModel, layer: Linear, order: np.ndarray, weight: np.ndarray) -> None:
    """Let a layer read its input's channels in this order, some of them more than once, with a new weight."""
    graph = model.graph()
    (node,) = (node for node in graph.nodes if node.name == layer.name and node.op_type in LINEAR_TYPES)
    indices = graph.free_tensor(f"{layer.name}/split/channels")
    widened = graph.free_tensor(f"{layer.name}/split/output")
    last = len(tensor_shapes(model.edited)[layer.x]) - 1  # PPQ's Gather counts no axis from the end
    gather = helper.make_node("Gather", [layer.x, indices], [widened], name=f"{layer.name}/split", axis=last)
    new = copied(node)
    new.input[0] = widened
    model.replace_operators({layer.name: [gather, new]}, {indices: order.astype(np.int64)}, equal=True)
    model.set_parameters({(layer.name, 1): layer.stored(weight)}, equal=True)


METHOD = OCS
