"""How much the output moves when what one operator reads is quantized, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ptq2themoon.progress import progress
from ptq2themoon.quantize.program import Program, Values
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.simulation import SimulatedModel

IMAGES = 16  # enough to tell a layer that loses much from one that does not


def input_sensitivities(
    floating: SimulatedModel, quantizers: Mapping[str, Quantizer], batches: Iterable[Tensor]
) -> dict[str, float]:
    """Squared error of the output, summed over the first images, by operator whose first input is quantized.

    What comes before an operator is computed once; the time is that of half a run for each operator.

    Args:
        floating: the model in floating point.
        quantizers: of the first inputs, by operator.
        batches: images [B, C, H, W], normalised.
    """
    images = next(iter(batches))[:IMAGES]
    found = dict.fromkeys(quantizers, 0.0)
    program = floating.program()
    parts = [part.to(floating.device) for part in floating.parts(images)]
    for part in progress(parts, desc="one input at a time"):
        known: Values = {floating.input_name: part}
        (output,) = program.run(known)
        for index, step in enumerate(program.steps):
            if step.name in quantizers:
                moved = _moved(program, index, known, quantizers[step.name])
                found[step.name] += float((moved - output).double().square().sum())
            program.advance(step, known)
    return found


def _moved(program: Program, index: int, known: Values, quantizer: Quantizer) -> Tensor:
    """The output when the operator at `index` reads a quantized first input."""
    step = program.steps[index]
    first, *others = program.read_by(step, known)
    made = program.apply(step, [quantizer(first), *others])
    after = known | dict(zip((name for name, _ in step.outputs), made, strict=True))
    with torch.inference_mode():
        (output,) = program.run_from(index + 1, after)
    return output
