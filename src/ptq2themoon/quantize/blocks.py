"""A quantized model as trainable programs, one for each transformer block: what learned methods build on."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ptq2themoon.ppq_compat import ir, quiet_ppq
from ptq2themoon.quantize.program import Hook, Program
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.operators import Operator


@dataclass(frozen=True)
class Segment:
    """Consecutive operators of a model, with a gradient.

    Attributes:
        block: index of the transformer block; None before the first, between stages and after the last.
        layer: the one operator that it is, where a model is cut at layers.
        program: trainable. `program.read` names the tensors that it takes, `program.wanted` those that it
            gives, and `program.parameters` holds weights and biases by `operator.position`.
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
    model: SimulatedModel, operators: Iterable[Operator], layers: Collection[str] | None = None
) -> list[Segment]:
    """The model cut where a transformer block begins and where it ends, in the order in which it runs.

    Run one after another, each on what those before it gave, they give the model's outputs. Quantizers
    are those in force in `model`; a value that two segments share is quantized by each that reads it.

    Args:
        operators: of the model's graph, with blocks.
        layers: cut before and after each of these operators instead.
    """
    order = model.order
    blocks = {operator.name: operator.block for operator in operators}
    found = []
    for block, start, end in _cuts(order, blocks) if layers is None else _layer_cuts(order, blocks, layers):
        made = {variable.name for operation in order[start:end] for variable in operation.outputs}
        later = {variable.name for operation in order[end:] for variable in operation.inputs}
        wanted = [name for name in sorted(made) if name in later or name in model.outputs]
        layer = order[start].name if order[start].name in (layers or ()) else None
        found.append(Segment(block, model.trainable(order[start:end], wanted), layer))
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
