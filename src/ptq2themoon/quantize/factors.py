"""What a search of scales goes over: operators with two factors, and the quantizers that each may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ptq2themoon.graph.editing.operator_types import WEIGHTED_TYPES, channel_axis, output_axis
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.quantize.scores import Score
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedTensor, Slot

FACTORS = (1, 0)  # positions of an operator's factors, in the order of their turns


class Grid(Protocol):
    """Multipliers of a scale, and how often the factors take turns; a method's settings have them."""

    @property
    def alpha(self) -> float:
        """The least multiplier."""

    @property
    def beta(self) -> float:
        """The greatest."""

    @property
    def n(self) -> int:
        """Steps between them."""

    @property
    def rounds(self) -> int:
        """Turns of each factor; 0: nothing is searched."""


Alternatives = Callable[[Slot, Quantizer], Sequence[Quantizer] | None]


@dataclass
class Factor:
    """One factor of an operator, with the quantizers that it may have.

    Attributes:
        candidates: the first is what calibration gave.
        axis: of the output, whose indices choose each for itself; None: one choice for all.
        chosen: the candidate in force, for each of these.
    """

    slot: Slot
    tensor: QuantizedTensor
    candidates: list[Quantizer]
    axis: int | None
    chosen: Tensor | None = None

    def take(self, chosen: Tensor) -> bool:
        """Put a choice in force; whether it differs from the one before."""
        before = torch.zeros_like(chosen) if self.chosen is None else self.chosen
        self.chosen, first = chosen, self.candidates[0]
        if self.axis is None or not first.scale.ndim:
            self.tensor.quantizer = self.candidates[int(chosen[0])]
        else:
            assert isinstance(first, Uniform)
            scales = torch.stack([candidate.scale for candidate in self.candidates])
            self.tensor.quantizer = first.with_scale(scales.gather(0, chosen[None])[0])
        return not torch.equal(before, chosen)


@dataclass
class Product:
    """An operator with factors to search.

    Attributes:
        operands: its quantized factors by position, those too that are not searched.
        constants: its parameters by position, as edited.
        losses: before and after each turn, summed over the groups of that turn's factor.
        settled: whether another turn would change nothing.
    """

    name: str
    factors: list[Factor]
    operands: dict[int, QuantizedTensor]
    constants: dict[int, Tensor]
    score: Score
    losses: list[tuple[float, float]] = field(default_factory=list)
    settled: bool = False

    def next(self) -> Factor:
        """Whose turn it is."""
        return self.factors[len(self.losses) % len(self.factors)]

    def choose(self, losses: Tensor) -> None:
        """End a turn: each group takes the candidate of its least loss, the first of equal ones.

        Args:
            losses: [candidates, groups].
        """
        factor, chosen = self.next(), losses.argmin(0)
        before = torch.zeros_like(chosen) if factor.chosen is None else factor.chosen
        of_both = (losses.gather(0, index[None]).sum().item() for index in (before, chosen))
        changed = factor.take(chosen)
        self.losses.append((next(of_both), next(of_both)))
        # What the other factor was searched with is in force still, or there is no other factor.
        done = len(self.losses) >= len(self.factors)
        self.settled = done and (len(self.factors) == 1 or not changed)


def products(
    model: QuantizedModel,
    graphs: tuple[SimulatedModel, SimulatedModel],
    grid: Grid,
    score_of: Callable[[str], Score],
    alternatives: Alternatives = lambda *_: None,
) -> list[Product]:
    """Operators with a factor to search, in graph order, with all candidates.

    Args:
        graphs: the rewritten graph in floating point, and the edited one, whose parameters are quantized.
        score_of: the score of an operator.
        alternatives: candidates of a slot in the place of multiples of its scale; None: those.
    """
    nodes, there = model.nodes(), {operation.name for operation in graphs[0].order}
    found = []
    for item in model.quantized:
        name, kind = item.operator.name, item.operator.type
        if kind not in WEIGHTED_TYPES or name not in there:
            continue
        operands = {t.position: t for t in item.tensors if t.operand != "output" and t.position in FACTORS}
        factors = []
        for tensor in (operands[position] for position in FACTORS if position in operands):
            slot, first = item.slot(tensor), tensor.ready()
            candidates = candidates_of(first, grid, alternatives(slot, first))
            if candidates:
                axis = _own_part(tensor, kind, nodes[name].transposed_weight)
                factors.append(Factor(slot, tensor, candidates, axis))
        if factors:
            constants = {
                position: graphs[1].parameter(name, position)
                for position, is_parameter in enumerate(nodes[name].parameter_inputs)
                if is_parameter
            }
            found.append(Product(name, factors, operands, constants, score_of(name)))
    return found


def candidates_of(first: Quantizer, grid: Grid, more: Sequence[Quantizer] | None) -> list[Quantizer]:
    """What a factor began with, and multiples of its scale or `more`; none for kinds without multiples."""
    if more is None and isinstance(first, Uniform):
        steps = torch.linspace(grid.alpha, grid.beta, grid.n + 1, dtype=torch.float64)
        more = [first.with_scale((first.scale.double() * step).float()) for step in steps]
    return [first, *more] if more else []


def _own_part(tensor: QuantizedTensor, op_type: str, transposed: bool) -> int | None:
    """The axis of the output on which each scale of a factor decides its own part."""
    if tensor.granularity == "per-head":
        return 1
    if tensor.operand == "weight" and tensor.axis == output_axis(op_type, transposed):
        return channel_axis(op_type)
    return None
