"""Train the units of a quantized model one after another to give what they give in floating point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.learning.learned import mixed
from ptq2themoon.quantize.learning.loop import Draws, train
from ptq2themoon.quantize.learning.losses import BlockLoss
from ptq2themoon.quantize.learning.pupil import Found, Pupil, Rates
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.learning.units import Unit, train_units
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.vocabulary.training_settings import TrainingSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.tools import Tools


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

    @property
    def rates(self) -> Rates:
        """Of all that is learned."""
        return Rates(self.rate, self.scale_rate, self.weight_scale_rate, self.cosine)

    def exponent(self, iteration: int) -> float | None:
        """Beta at an iteration, falling linearly; None as long as the regulariser is off."""
        start = self.warm * self.training.steps
        if iteration < start:
            return None
        share = (iteration - start) / max(self.training.steps - start, 1)
        return self.beta[1] + (self.beta[0] - self.beta[1]) * max(0.0, 1 - share)


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
    losses: dict[str, list[float]] = {}
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
        losses[unit.name] = _Lesson(unit, learning, generator).learn(tools.state, count, found)

    train_units(model, graphs, tools.images(training.images), learn, training.memory_mb * 2**20, layers)
    found.put(model)
    return losses


class _Lesson:
    """One unit, and what is learned of it."""

    def __init__(self, unit: Unit, learning: Learning, generator: torch.Generator) -> None:
        self._unit, self._learning, self._generator = unit, learning, generator
        self._pupil = Pupil(
            unit.segment.program, learning.rates, generator, rounding=learning.rounding, drop=learning.drop
        )

    def learn(self, state: State | None, number: int, found: Found) -> list[float]:
        """Train, or take what an earlier run learned; then leave the unit as quantized with it."""
        saved = state.load(f"unit-{number}") if state is not None else None
        if saved is not None:
            self._pupil.prepare()
            tensors, losses = saved[0], list(saved[1]["losses"])
        else:
            name = f"train {self._unit.name}"
            losses = self._train(Draws(self._unit.images, self._generator, state, f"training-{number}", name))
            tensors = self._pupil.learned()
            if state is not None:
                state.save(f"unit-{number}", tensors, {"losses": losses})
        self._pupil.settle(tensors, found)
        return losses

    def _train(self, draws: Draws) -> list[float]:
        learning, pupil = self._learning, self._pupil
        loss = learning.loss(self._unit)  # looks at the unit as calibrated
        pupil.prepare()

        def total(iteration: int, index: Tensor) -> tuple[Tensor, Tensor]:
            error = loss(iteration, self._unit.segment(self._inputs(index)), index)
            beta = learning.exponent(iteration)
            if beta is None or not pupil.soft:
                return error, error
            undecided = torch.stack([soft.undecided(beta) for soft in pupil.soft.values()]).sum()
            return error + learning.weigh * undecided, error

        def settled() -> bool:
            return all(soft.settled for soft in pupil.soft.values())

        return train(pupil.groups(), total, learning.training, draws, settled=settled, extra=loss.extra())

    def _inputs(self, index: Tensor) -> dict[str, Tensor]:
        found, share = self._unit.inputs(index, quantized=True), self._learning.input
        if share:
            for name, exact in self._unit.inputs(index, quantized=False).items():
                if exact.is_floating_point():
                    found[name] = mixed(exact, found[name], share, self._generator)
        return found
