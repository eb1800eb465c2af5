"""Train the units of a quantized model one after another to give what they give in floating point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.learning.learned import Dropping, Learned, SoftRounding, mixed
from ptq2themoon.quantize.learning.loop import Draws, Group, train
from ptq2themoon.quantize.learning.losses import BlockLoss
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.learning.units import Unit, train_units
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.program import Input, Step
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.vocabulary.training_settings import TrainingSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.tools import Tools

LEAST = 1e-8  # of a learned scale


@dataclass(frozen=True)
class Learning:
    """What is learned of each unit, and by what.

    Attributes:
        training: how long, and with what.
        loss: made for each unit.
        rounding: learn how weights are rounded; False: learn weights and biases themselves, straight through.
        rate: of what is learned of weights.
        scale_rate: of activations' scales; 0: they stay.
        weight_scale_rate: of weights' scales where weights themselves are learned; 0: they stay.
        cosine: whether the rate of weights falls as that of scales does.
        drop: probability that a value of a quantized activation stays in floating point.
        input: share of a unit's input values that come from floating point; the rest is as quantized.
        weigh: of the regulariser of rounding.
        warm: share of the iterations without it.
        beta: its exponent, from the first after `warm` to the last.
    """

    training: TrainingSettings
    loss: Callable[[Unit], BlockLoss]
    rounding: bool = True
    rate: float = 1e-3
    scale_rate: float = 0.0
    weight_scale_rate: float = 0.0
    cosine: bool = False
    drop: float = 0.0
    input: float = 0.0
    weigh: float = 0.01
    warm: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)

    def exponent(self, iteration: int) -> float | None:
        """Beta at an iteration, falling linearly; None as long as the regulariser is off."""
        start = self.warm * self.training.steps
        if iteration < start:
            return None
        share = (iteration - start) / max(self.training.steps - start, 1)
        return self.beta[1] + (self.beta[0] - self.beta[1]) * max(0.0, 1 - share)


@dataclass
class Found:
    """What was learned of all units."""

    parameters: dict[str, Tensor] = field(default_factory=dict)
    quantizers: dict[int, Quantizer] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)


def reconstruct(
    model: QuantizedModel, tools: Tools, learning: Learning, *, by_layer: bool = False
) -> dict[str, list[float]]:
    """Learn, unit by unit in graph order, and put what is learned in force.

    Args:
        by_layer: units are linear layers with a quantized weight; else transformer blocks and the rest.

    Returns:
        The loss of each iteration, by unit.

    Raises:
        UserError: a graph that cannot be cut into units, or a loss that is not finite.
    """
    training, found = learning.training, Found()
    if not training.steps:
        return {}
    graphs = tools.floating(model), tools.simulation(model)
    weights = {slot.operator for slot, tensor in model.slots() if tensor.operand == "weight"}
    layers = {layer.name for layer in linear_layers(model.graph())} & weights if by_layer else None
    count = 0

    def learn(unit: Unit) -> None:
        nonlocal count
        count += 1
        generator = torch.Generator().manual_seed(tools.seed * 1_000_003 + count)
        _Pupil(unit, learning, generator).learn(tools.state, count, found)

    train_units(model, graphs, tools.images(training.images), learn, training.memory_mb * 2**20, layers)
    _put(model, found)
    return found.losses


def _put(model: QuantizedModel, found: Found) -> None:
    values: dict[tuple[str, int], np.ndarray] = {}
    for key, value in found.parameters.items():
        operator, _, position = key.rpartition(".")
        values[operator, int(position)] = value.cpu().numpy()
    model.set_parameters(values, equal=False)
    for _, tensor in model.slots():
        tensor.quantizer = found.quantizers.get(id(tensor.quantizer), tensor.quantizer)


_Pairs = dict[int, tuple[Quantizer, Uniform]]


class _Pupil:
    """A unit with what is learned of it in the place of its quantizers."""

    def __init__(self, unit: Unit, learning: Learning, generator: torch.Generator) -> None:
        self._unit, self._learning, self._generator = unit, learning, generator
        self._parameters = unit.segment.program.parameters
        self._soft: dict[str, SoftRounding] = {}
        self._plain: list[str] = []
        # The quantizer of calibration, by its id, and the one that learns in its place.
        self._of_weights: _Pairs = {}
        self._of_activations: _Pairs = {}
        self._undo: list[Callable[[Mapping[int, Quantizer]], None]] = []

    def learn(self, state: State | None, number: int, found: Found) -> None:
        """Train, or take what an earlier run learned; then leave the unit as quantized with it."""
        saved = state.load(f"unit-{number}") if state is not None else None
        if saved is not None:
            self._prepare()
            tensors, losses = saved[0], saved[1]["losses"]
        else:
            name = f"train {self._unit.name}"
            losses = self._train(Draws(self._unit.images, self._generator, state, f"training-{number}", name))
            tensors = self._learned()
            if state is not None:
                state.save(f"unit-{number}", tensors, {"losses": losses})
        self._settle(tensors, found)
        found.losses[self._unit.name] = losses

    def _train(self, draws: Draws) -> list[float]:
        learning = self._learning
        loss = learning.loss(self._unit)  # looks at the unit as calibrated
        self._prepare()
        ours = [soft.v for soft in self._soft.values()] + [self._parameters[key] for key in self._plain]
        groups = [
            Group(ours, learning.rate, learning.cosine),
            Group([q.scale for _, q in self._of_activations.values()], learning.scale_rate, cosine=True),
            Group([q.scale for _, q in self._of_weights.values()], learning.weight_scale_rate, cosine=True),
        ]
        groups = [group for group in groups if group.parameters]
        for parameter in (one for group in groups for one in group.parameters):
            parameter.requires_grad_()

        def total(iteration: int, index: Tensor) -> tuple[Tensor, Tensor]:
            error = loss(iteration, self._unit.segment(self._inputs(index)), index)
            beta = learning.exponent(iteration)
            if beta is None or not self._soft:
                return error, error
            undecided = torch.stack([soft.undecided(beta) for soft in self._soft.values()]).sum()
            return error + learning.weigh * undecided, error

        def settled() -> bool:
            return all(soft.settled for soft in self._soft.values())

        return train(groups, total, learning.training, draws, settled=settled, extra=loss.extra())

    def _inputs(self, index: Tensor) -> dict[str, Tensor]:
        found, share = self._unit.inputs(index, quantized=True), self._learning.input
        if share:
            for name, exact in self._unit.inputs(index, quantized=False).items():
                if exact.is_floating_point():
                    found[name] = mixed(exact, found[name], share, self._generator)
        return found

    def _prepare(self) -> None:
        """Put what learns in the place of quantizers, in the order of operators."""
        for step in self._unit.segment.program.steps:
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

    def _prepare_parameter(self, item: Input, key: str) -> None:
        quantizer = item.quantizer
        if not self._learning.rounding:
            self._parameters[key] = self._parameters[key].detach().clone()
            self._plain.append(key)
            if isinstance(quantizer, Uniform) and self._learning.weight_scale_rate:
                self._replace(item, self._with_scale(quantizer, self._of_weights))
        elif isinstance(quantizer, Uniform) and self._parameters[key].ndim > 1:
            self._soft[key] = SoftRounding(quantizer, self._parameters[key])
            self._replace(item, self._soft[key])

    def _replace(self, item: Input, learned: Learned) -> None:
        original = item.quantizer
        assert original is not None
        item.quantizer = cast(Quantizer, learned)  # a trainable program calls `straight_through` alone

        def undo(found: Mapping[int, Quantizer]) -> None:
            item.quantizer = found.get(id(original), original)

        self._undo.append(undo)

    def _dropping(self, quantizer: Quantizer) -> Learned:
        own = quantizer
        if isinstance(quantizer, Uniform) and self._learning.scale_rate:
            own = self._with_scale(quantizer, self._of_activations)
        return Dropping(own, self._learning.drop, self._generator)

    def _with_scale(self, quantizer: Uniform, learned: _Pairs) -> Uniform:
        """A copy whose scale is learned: one for all slots that share a quantizer."""
        if id(quantizer) not in learned:
            own = quantizer.with_scale(quantizer.scale)
            own.scale = quantizer.scale.clone().to(self._unit.device)
            learned[id(quantizer)] = quantizer, own
        return learned[id(quantizer)][1]

    def _learned(self) -> dict[str, Tensor]:
        found = {f"weight.{key}": soft.hard() for key, soft in self._soft.items()}
        found |= {f"weight.{key}": self._parameters[key].detach() for key in self._plain}
        scales = [*self._of_activations.values(), *self._of_weights.values()]
        return found | {f"scale.{i}": q.scale.detach().clamp(min=LEAST) for i, (_, q) in enumerate(scales)}

    def _settle(self, tensors: Mapping[str, Tensor], found: Found) -> None:
        """Leave the unit with what was learned, as the quantized model will have it."""
        for i, (original, own) in enumerate([*self._of_activations.values(), *self._of_weights.values()]):
            found.quantizers[id(original)] = own.with_scale(tensors[f"scale.{i}"])
        for key in (*self._soft, *self._plain):
            value = tensors[f"weight.{key}"].to(self._unit.device)
            self._parameters[key] = found.parameters[key] = value.detach()
        for undo in self._undo:
            undo(found.quantizers)


def _put_output(
    step: Step, index: int, name: str, original: Quantizer
) -> Callable[[Mapping[int, Quantizer]], None]:
    def undo(found: Mapping[int, Quantizer]) -> None:
        step.outputs[index] = name, found.get(id(original), original)

    return undo
