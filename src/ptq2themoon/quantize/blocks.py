"""A quantized model as programs, one for each transformer block: for methods that learn or search."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq2themoon.ppq_compat import ir, quiet_ppq
from ptq2themoon.quantize.program import Hook, Program, Values
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.operators import Operator


@dataclass(frozen=True)
class Segment:
    """Consecutive operators of a model, with a gradient where `program` is trainable.

    Attributes:
        block: index of the transformer block; None before the first, between stages and after the last.
        layer: the one operator that it is, where a model is cut at layers.
        program: `program.read` names the tensors that it takes, `program.wanted` those that it
            gives, and `program.parameters` of a trainable one holds weights and biases by
            `operator.position`.
    """

    block: int | None
    program: Program
    layer: str | None = None

    def __call__(
        self, values: Mapping[str, Tensor], hooks: Mapping[str, Hook] | None = None
    ) -> dict[str, Tensor]:
        """The tensors that it gives, by name, from those that it reads; `hooks` by operator."""
        taken = {name: values[name] for name in self.program.read}
        with quiet_ppq():
            return dict(zip(self.program.wanted, self.program.run(taken, hooks), strict=True))


def segments(
    model: SimulatedModel,
    operators: Iterable[Operator],
    layers: Collection[str] | None = None,
    *,
    trainable: bool = True,
) -> list[Segment]:
    """The model cut where a transformer block begins and where it ends, in the order in which it runs.

    Run one after another, each on what those before it gave, they give the model's outputs. Quantizers
    are those in force in `model`; a value that two segments share is quantized by each that reads it.

    Args:
        operators: of the model's graph, with blocks.
        layers: cut before and after each of these operators instead.
        trainable: with gradients; else parameters are quantized once, beforehand.
    """
    order = model.order
    blocks = {operator.name: operator.block for operator in operators}
    found = []
    for block, start, end in _cuts(order, blocks) if layers is None else _layer_cuts(order, blocks, layers):
        made = {variable.name for operation in order[start:end] for variable in operation.outputs}
        later = {variable.name for operation in order[end:] for variable in operation.inputs}
        wanted = [name for name in sorted(made) if name in later or name in model.outputs]
        layer = order[start].name if order[start].name in (layers or ()) else None
        make = model.trainable if trainable else model.part
        found.append(Segment(block, make(order[start:end], wanted), layer))
    return found


def _layer_cuts(
    order: Sequence[ir.Operation], blocks: Mapping[str, int | None], layers: Collection[str]
) -> list[tuple[int | None, int, int]]:
    """As `_cuts`, with each of these operators alone."""
    alone = [index for index, operation in enumerate(order) if operation.name in layers]
    bounds = sorted({0, len(order), *alone, *(index + 1 for index in alone)})
    return [(blocks.get(order[start].name), start, end) for start, end in itertools.pairwise(bounds)]


def _cuts(
    order: Sequence[ir.Operation], blocks: Mapping[str, int | None]
) -> list[tuple[int | None, int, int]]:
    """(block, first, one past the last) of runs of operators; what stands within a block belongs to it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, operation in enumerate(order):
        block = blocks.get(operation.name)
        if block is not None:
            first.setdefault(block, index)
            last[block] = index + 1
    cuts: list[tuple[int | None, int, int]] = []
    position = 0
    for block in sorted(first, key=first.__getitem__):
        if first[block] > position:
            cuts.append((None, position, first[block]))
        start = max(position, first[block])
        cuts.append((block, start, last[block]))
        position = last[block]
    if position < len(order):
        cuts.append((None, position, len(order)))
    return cuts


def run_segments(found: Sequence[Segment], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that the segments give, run one after another from the model's input."""
    known = dict(values)
    for segment in found:
        known |= segment(known)
    return known


class Passage:
    """Images on their way through a quantized model, all before the same segment.

    From there the rest of the model can be run again and again, with other quantizers: no segment before it
    is computed more than once. Memory: what the images have at one border between two segments. To be used
    without gradients.

    Args:
        model: what is in force in it decides, whenever `renew` is called.
        operators: of the model's graph, with blocks.
        states: the images in parts, each as a value of the model's input; taken over.

    Attributes:
        segments: of the model, in the order in which it runs.
        at: index of the segment that the images wait for.
    """

    def __init__(self, model: SimulatedModel, operators: Iterable[Operator], states: list[Values]) -> None:
        self.segments, self.at = segments(model, operators, trainable=False), 0
        self._model, self._states = model, states

    def renew(self, indices: Iterable[int]) -> None:
        """Put the model's quantizers in force in these segments; weights that keep theirs stay as is."""
        quantizers = self._model.quantizers()
        for index in indices:
            old = self.segments[index]
            self.segments[index] = Segment(old.block, old.program.renewed(quantizers))

    def output(self) -> Tensor:
        """The model's output for all images, on the CPU."""
        (name,) = self._model.outputs
        return torch.cat([run_segments(self.segments[self.at :], s)[name].cpu() for s in self._states])

    def advance(self) -> None:
        """Take all images through the segment that they wait for."""
        segment, later = self.segments[self.at], self.segments[self.at + 1 :]
        needed = {name for other in later for name in other.program.read}
        for state in self._states:
            state |= segment(state)
            for name in state.keys() - needed:
                del state[name]
        self.at += 1
