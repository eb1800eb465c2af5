"""A trainable program with what learns in the place of its quantizers, and what becomes of a model by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.quantize.learning.learned import Dropping, Learned, SoftRounding
from ptq2themoon.quantize.learning.loop import Group
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.program import Input, Program, Step
from ptq2themoon.quantize.quantizers import Quantizer, Uniform

LEAST = 1e-8  # of a learned scale


class Rates(NamedTuple):
    """Learning rates of Adam.

    Attributes:
        weights: of weights and biases, or of how they are rounded.
        scales: of activations' scales; 0: they stay.
        weight_scales: of weights' scales where weights themselves are learned; 0: they stay.
        cosine: whether the rate of weights falls along half a cosine, as that of scales does.
        relative: whether rates of scales are shares of the scale, of its mean over channels, before training.
    """

    weights: float
    scales: float = 0.0
    weight_scales: float = 0.0
    cosine: bool = False
    relative: bool = False


@dataclass
class Found:
    """What was learned: parameters by `operator.position`, quantizers by the id of the one they replace."""

    parameters: dict[str, Tensor] = field(default_factory=dict)
    quantizers: dict[int, Quantizer] = field(default_factory=dict)

    def put(self, model: QuantizedModel) -> None:
        """Put it in force."""
        values: dict[tuple[str, int], np.ndarray] = {}
        for key, value in self.parameters.items():
            operator, _, position = key.rpartition(".")
            values[operator, int(position)] = value.cpu().numpy()
        model.set_parameters(values, equal=False)
        for _, tensor in model.slots():
            tensor.quantizer = self.quantizers.get(id(tensor.quantizer), tensor.quantizer)


_Pairs = dict[int, tuple[Quantizer, Uniform]]


class Pupil:
    """A program that learns: weights and biases of its operators with a quantized parameter, and scales.

    Args:
        program: trainable; it is as quantized before `prepare`, and with what was learned after `settle`.
        rounding: learn how weights are rounded; False: learn weights and biases themselves, straight through.
        drop: probability that a value of a quantized activation stays in floating point.
        generator: of what is dropped.

    Attributes:
        soft: roundings that are learned, by parameter; there after `prepare`.
    """

    def __init__(
        self, program: Program, rates: Rates, generator: torch.Generator, *, rounding: bool, drop: float = 0.0
    ) -> None:
        self._program, self._rates, self._generator = program, rates, generator
        self._rounding, self._drop = rounding, drop
        self.soft: dict[str, SoftRounding] = {}
        self._plain: list[str] = []
        # The quantizer of calibration, by its id, and the one that learns in its place.
        self._of_weights: _Pairs = {}
        self._of_activations: _Pairs = {}
        self._undo: list[Callable[[Mapping[int, Quantizer]], None]] = []

    def prepare(self) -> None:
        """Put what learns in the place of quantizers, in the order of operators."""
        for step in self._program.steps:
            weighted = any(item.parameter and item.quantizer for item in step.inputs)
            for position, item in enumerate(step.inputs):
                if item.parameter is None and item.quantizer is not None:
                    self._replace(item, self._dropping(item.quantizer))
                elif item.parameter is not None and weighted and position > 0:
                    self._prepare_parameter(item, item.parameter)
            for i, (name, quantizer) in enumerate(step.outputs):
                if quantizer is not None:
                    step.outputs[i] = name, cast(Quantizer, self._dropping(quantizer))
                    self._undo.append(_put_output(step, i, name, quantizer))

    def groups(self) -> list[Group]:
        """All that is learned, made to require gradients."""
        rates = self._rates
        ours = [soft.v for soft in self.soft.values()]
        ours += [self._program.parameters[key] for key in self._plain]
        groups = [Group(ours, rates.weights, rates.cosine)]
        pairs = (self._of_activations, rates.scales), (self._of_weights, rates.weight_scales)
        for learned, rate in pairs:
            scales = [own.scale for _, own in learned.values()]
            if rates.relative:
                groups += [Group([scale], rate * float(scale.mean()), cosine=True) for scale in scales]
            else:
                groups.append(Group(scales, rate, cosine=True))
        groups = [group for group in groups if group.parameters]
        for parameter in (one for group in groups for one in group.parameters):
            parameter.requires_grad_()
        return groups

    def learned(self) -> dict[str, Tensor]:
        """What was learned, for `settle`."""
        found = {f"weight.{key}": soft.hard() for key, soft in self.soft.items()}
        found |= {f"weight.{key}": self._program.parameters[key].detach() for key in self._plain}
        scales = [*self._of_activations.values(), *self._of_weights.values()]
        return found | {f"scale.{i}": q.scale.detach().clamp(min=LEAST) for i, (_, q) in enumerate(scales)}

    def settle(self, tensors: Mapping[str, Tensor], found: Found) -> None:
        """Leave the program as the quantized model will have it, and add what was learned to `found`.

        Args:
            tensors: of `learned`, by this run or one that was killed.
        """
        for i, (original, own) in enumerate([*self._of_activations.values(), *self._of_weights.values()]):
            found.quantizers[id(original)] = own.with_scale(tensors[f"scale.{i}"])
        for key in (*self.soft, *self._plain):
            value = tensors[f"weight.{key}"].to(self._program.device)
            self._program.parameters[key] = found.parameters[key] = value.detach()
        for undo in self._undo:
            undo(found.quantizers)

    def _prepare_parameter(self, item: Input, key: str) -> None:
        quantizer, parameters = item.quantizer, self._program.parameters
        if not self._rounding:
            parameters[key] = parameters[key].detach().clone()
            self._plain.append(key)
            if isinstance(quantizer, Uniform) and self._rates.weight_scales:
                self._replace(item, self._with_scale(quantizer, self._of_weights))
        elif isinstance(quantizer, Uniform) and parameters[key].ndim > 1:
            self.soft[key] = SoftRounding(quantizer, parameters[key])
            self._replace(item, self.soft[key])

    def _replace(self, item: Input, learned: Learned) -> None:
        original = item.quantizer
        assert original is not None
        item.quantizer = cast(Quantizer, learned)  # a trainable program calls `straight_through` alone

        def undo(found: Mapping[int, Quantizer]) -> None:
            item.quantizer = found.get(id(original), original)

        self._undo.append(undo)

    def _dropping(self, quantizer: Quantizer) -> Learned:
        own = quantizer
        if isinstance(quantizer, Uniform) and self._rates.scales:
            own = self._with_scale(quantizer, self._of_activations)
        return Dropping(own, self._drop, self._generator)

    def _with_scale(self, quantizer: Uniform, learned: _Pairs) -> Uniform:
        """A copy whose scale is learned: one for all slots that share a quantizer."""
        if id(quantizer) not in learned:
            own = quantizer.with_scale(quantizer.scale)
            own.scale = quantizer.scale.clone().to(self._program.device)
            learned[id(quantizer)] = quantizer, own
        return learned[id(quantizer)][1]


def _put_output(
    step: Step, index: int, name: str, original: Quantizer
) -> Callable[[Mapping[int, Quantizer]], None]:
    def undo(found: Mapping[int, Quantizer]) -> None:
        step.outputs[index] = name, found.get(id(original), original)

    return undo
