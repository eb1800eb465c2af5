"""How much the output moves when what one operator reads is quantized, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ptq2themoon.progress import progress
from ptq2themoon.quantize.program import Program, Step, Values
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot

IMAGES = 16  # enough to tell a layer that loses much from one that does not
# Of an output [B, ...] with something quantized and in floating point: a sum over images.
Loss = Callable[[Tensor, Tensor], float]


def squared(found: Tensor, wanted: Tensor) -> float:
    """Squared error."""
    return float((found - wanted).double().square().sum())


def kl(found: Tensor, wanted: Tensor) -> float:
    """Kullback-Leibler divergence of the classes' probabilities, in nats, from those in floating point."""
    ours, theirs = (value.double().log_softmax(-1) for value in (found, wanted))
    return float((theirs.exp() * (theirs - ours)).sum())


LOSSES: dict[str, Loss] = {"squared": squared, "kl": kl}


def input_sensitivities(
    floating: SimulatedModel, quantizers: Mapping[str, Quantizer], batches: Iterable[Tensor]
) -> dict[str, float]:
    """Squared error of the output, summed over the first images, by operator whose first input is quantized.

    Args:
        floating: the model in floating point.
        quantizers: of the first inputs, by operator.
        batches: images [B, C, H, W], normalised.
    """
    tried = {Slot(operator, "input", 0): [quantizer] for operator, quantizer in quantizers.items()}
    errors = output_errors(floating, tried, first_images(batches, IMAGES), squared)
    return {slot.operator: error for slot, (error,) in errors.items()}


def first_images(batches: Iterable[Tensor], count: int) -> list[Tensor]:
    """The first images, so many at most, in their batches."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch[:count])
        count -= len(found[-1])
        if count <= 0:
            break
    return found


def output_errors(
    floating: SimulatedModel,
    tried: Mapping[Slot, Sequence[Quantizer]],
    batches: Iterable[Tensor],
    loss: Loss,
) -> dict[Slot, list[float]]:
    """The loss of the output with one slot quantized and nothing else, for each quantizer tried there.

    What comes before an operator is computed once; the time is that of half a run for each quantizer.

    Args:
        floating: the model in floating point.
        tried: by input or weight of an operator.
        batches: images [B, C, H, W], normalised; losses are summed over all.
    """
    found = {slot: [0.0] * len(quantizers) for slot, quantizers in tried.items()}
    slots: dict[str, list[Slot]] = {}
    for slot in tried:
        slots.setdefault(slot.operator, []).append(slot)
    program = floating.program()
    parts = [part.to(floating.device) for images in batches for part in floating.parts(images)]
    for part in progress(parts, desc="one quantizer at a time"):
        known: Values = {floating.input_name: part}
        (output,) = program.run(known)
        for index, step in enumerate(program.steps):
            for slot in slots.get(step.name, ()):
                for number, quantizer in enumerate(tried[slot]):
                    made = _made(program, step, known, slot.position, quantizer)
                    with torch.inference_mode():
                        (moved,) = program.run_from(index + 1, known | made)
                    found[slot][number] += loss(moved, output)
            program.advance(step, known)
    return found


def _made(program: Program, step: Step, known: Values, position: int, quantizer: Quantizer) -> Values:
    """The outputs of an operator that reads a quantized value at this position."""
    inputs = program.read_by(step, known)
    inputs[position] = quantizer(inputs[position])
    return dict(zip((name for name, _ in step.outputs), program.apply(step, inputs), strict=True))
