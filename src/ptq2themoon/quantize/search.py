"""Search the scales of operators with two factors by what each candidate does to the operator's output.

Every operator is searched on its own inputs in floating point, all operators at once,
one part of a batch in memory at a time; of each candidate only a few sums are kept, so memory does not
grow with the number of images. The two factors of an operator (input and weight, or both sides of an
attention product) take turns: one is searched while the other stays quantized as it was last chosen.

The candidates of a factor are what it began with and its scale times alpha + i (beta - alpha) / n for
i = 0 to n, all of them tried, so no turn makes its loss worse. A score that only grows drops a candidate
once a part of the images shows it worse than what is in force; the choice stays the same. Where each index
of an axis has a scale of its own and decides its own part of the output (output channels of a weight,
heads), each takes the candidate that is best for its part; otherwise one multiplier serves the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ptq2themoon.quantize.factors import Factor, Grid, Product, candidates_of
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.scores import Squared
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import PARAMETERS, Slot
from ptq2themoon.quantize.watching import Seen, watch

PIECE = 2**17  # elements of an output that are computed at once: what caches hold
SLACK = 1e-6  # of a bound, for sums in another order


def search_scales(
    found: Sequence[Product],
    floating: SimulatedModel,
    batches: Iterable[Tensor],
    rounds: int,
    label_seed: int | None = None,
) -> None:
    """Let the factors of each product take turns, and put what is found in force.

    Args:
        floating: the rewritten graph in floating point.
        rounds: turns of each factor at most.
        label_seed: of the labels whose gradients weigh squared errors; None: without gradients.
    """
    turn = 0
    while active := [p for p in found if not p.settled and len(p.losses) < rounds * len(p.factors)]:
        turn += 1
        sums = {product.name: _Sums(product, product.next().candidates) for product in active}
        in_force = {p.name: _Sums(p, [p.next().tensor.ready()]) for p in active if p.score.additive}
        for searched, desc in ((in_force, "bounds"), (sums, "candidates")):
            if searched:
                see = _dispatched(searched)
                watch(floating, searched, batches, see, label_seed, f"search scales, turn {turn}, {desc}")
            if searched is in_force:
                for name, one in in_force.items():
                    sums[name].bound = one.losses()[0] * (1 + SLACK)
        for product in active:
            product.choose(sums[product.name].losses())


def _dispatched(sums: Mapping[str, _Sums]) -> Callable[[Seen], None]:
    return lambda seen: sums[seen.operator].see(seen)


class _Sums:
    """What candidates of the factor whose turn it is do to a product's output, on part after part.

    Attributes:
        bound: a loss [groups] that the best candidate does not exceed; who does in every group is dropped.
    """

    def __init__(self, product: Product, candidates: Sequence[Quantizer]) -> None:
        self._product, self._factor, self._candidates = product, product.next(), candidates
        self._wanted: Tensor | float = 0.0
        self._found: list[Tensor | float] = [0.0] * len(candidates)
        self._dropped = [False] * len(candidates)
        self.bound: Tensor | None = None

    def see(self, seen: Seen) -> None:
        """Add a part of the images to all sums."""
        product, position = self._product, self._factor.slot.position
        inputs = [product.constants.get(i, value) for i, value in enumerate(seen.inputs)]
        for other, tensor in product.operands.items():
            if other != position:
                inputs[other] = tensor.ready()(inputs[other])
        pieces = list(_pieces(inputs, seen, product))
        for piece in pieces:
            self._wanted = self._wanted + product.score.of_wanted(piece.output, self._factor.axis)
        constant = inputs[position] if position in product.constants else None
        for index, candidate in enumerate(self._candidates):
            kept = None if constant is None or self._dropped[index] else candidate(constant)
            for piece in pieces:
                if self._dropped[index]:
                    break
                operands = list(piece.inputs)
                operands[position] = candidate(operands[position]) if kept is None else kept
                self._add(index, self._off(piece, operands))

    def _add(self, index: int, sums: Tensor) -> None:
        self._found[index] = found = self._found[index] + sums
        if self.bound is not None:
            loss = self._product.score.loss(torch.as_tensor(self._wanted), found)
            self._dropped[index] = bool((loss > self.bound).all())

    def alone(self, value: Tensor) -> None:
        """Add a part of the factor's own values to all sums: what each candidate does to these."""
        for index, candidate in enumerate(self._candidates):
            found = self._product.score.of_found(candidate(value), value, None, self._factor.axis)
            self._found[index] = self._found[index] + found

    def _off(self, piece: Seen, operands: list[Tensor]) -> Tensor:
        output = piece.forward(operands)
        output = output[0] if isinstance(output, list | tuple) else output
        return self._product.score.of_found(output, piece.output, piece.weight, self._factor.axis)

    def losses(self) -> Tensor:
        """[candidates, groups], of all that was added; infinite for those dropped."""
        wanted = torch.as_tensor(self._wanted)
        found = [self._product.score.loss(wanted, torch.as_tensor(f)) for f in self._found]
        return torch.stack(found).masked_fill(torch.tensor(self._dropped)[:, None], torch.inf)


def _pieces(inputs: list[Tensor], seen: Seen, product: Product) -> Iterator[Seen]:
    """The images in pieces, where the first axis of all that is no parameter is one of images."""
    constants, length, count = product.constants, len(seen.output), 1
    read = [value for i, value in enumerate(inputs) if i not in constants]
    if product.score.divisible and all(value.ndim and len(value) == length for value in read):
        count = min(length, -(-seen.output.numel() // PIECE))
    size = -(-length // count)
    for start in range(0, length, size):
        end = start + size
        cut = [v if i in constants or count == 1 else v[start:end] for i, v in enumerate(inputs)]
        weight = None if seen.weight is None else seen.weight[start:end]
        yield Seen(seen.operator, seen.forward, cut, seen.output[start:end], weight)


def search_tensors(
    model: QuantizedModel,
    graphs: tuple[SimulatedModel, SimulatedModel],
    batches: Iterable[Tensor],
    grid: Grid,
) -> list[Product]:
    """Give each quantized tensor by itself the scales of least squared error; one turn is all there is.

    Args:
        graphs: the rewritten graph in floating point, and the edited one, whose parameters are quantized.
    """
    there = {operation.name for operation in graphs[0].order}
    found: dict[Slot, Product] = {}
    for slot, tensor in model.slots() if grid.rounds else ():
        candidates = candidates_of(tensor.ready(), grid, None)
        if candidates and (tensor.is_parameter or slot.operator in there):
            axis = tensor.axis if tensor.ready().scale.ndim else None
            factor = Factor(slot, tensor, candidates, axis)
            found[slot] = Product(slot.operator, [factor], {}, {}, Squared())
    sums = {slot: _Sums(product, product.next().candidates) for slot, product in found.items()}
    activations: dict[str, list[Slot]] = {}
    for slot in found:
        if slot.operand in PARAMETERS:
            value = graphs[1].parameter(slot.operator, slot.position)
            sums[slot].alone(value)
        else:
            activations.setdefault(slot.operator, []).append(slot)

    def see(seen: Seen) -> None:
        for slot in activations[seen.operator]:
            value = seen.output if slot.operand == "output" else seen.inputs[slot.position]
            sums[slot].alone(value)

    if activations:
        watch(graphs[0], activations, batches, see, desc="search scales of tensors")
    for slot, product in found.items():
        product.choose(sums[slot].losses())
    return list(found.values())
