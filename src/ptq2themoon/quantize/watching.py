"""Run a model in floating point and see what chosen operators read and make, part by part.

With labels each value of an output comes with the square of a loss's gradient. The loss is the cross
entropy of labels that are drawn from the model's own softmax. The KL divergence of the model from itself
will not do in its place: at its minimum its gradient is zero, and what rounding leaves of it is noise. Its
second derivative there is the Fisher information, and that is the mean square of just this gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.progress import progress
from ptq2themoon.quantize.program import Program
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError


class Seen(NamedTuple):
    """One operator on a part of a batch.

    Attributes:
        operator: its name.
        forward: what it computes.
        inputs: what it reads, parameters too.
        output: the first of what it made of that.
        weight: squared gradient of each value of the output, with labels; else None.
    """

    operator: str
    forward: Callable[[list[Any]], Any]
    inputs: list[Any]
    output: Tensor
    weight: Tensor | None


def watch(
    floating: SimulatedModel,
    operators: Collection[str],
    batches: Iterable[Tensor],
    visit: Callable[[Seen], None],
    label_seed: int | None = None,
    desc: str = "watch",
) -> None:
    """Show `visit` each operator on each part of the images, in graph order; it sees no gradients.

    Args:
        floating: a model without quantizers.
        label_seed: of the labels; the same seed gives the same gradients. None: no gradients.

    Raises:
        UserError: an operator whose gradient is zero on all images.
    """
    if label_seed is None:
        _plainly(floating, operators, batches, visit, desc)
    else:
        _with_gradients(floating, operators, batches, visit, label_seed, desc)


def _plainly(
    floating: SimulatedModel,
    operators: Collection[str],
    batches: Iterable[Tensor],
    visit: Callable[[Seen], None],
    desc: str,
) -> None:
    steps = {step.name: step for step in floating.program().steps}

    def hook(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        visit(Seen(name, steps[name].forward, inputs, outputs[0], None))

    for images in progress(batches, desc=desc):
        for part in floating.parts(images):
            floating(part, dict.fromkeys(operators, hook))


def _with_gradients(
    floating: SimulatedModel,
    operators: Collection[str],
    batches: Iterable[Tensor],
    visit: Callable[[Seen], None],
    label_seed: int,
    desc: str,
) -> None:
    program = floating.trainable(floating.order, floating.outputs)
    steps = {step.name: step for step in program.steps}
    generator = torch.Generator().manual_seed(label_seed)
    sizes = dict.fromkeys(operators, 0.0)
    for images in progress(batches, desc=desc):
        for part in floating.parts(images):
            seen = _run(program, floating.input_name, part.to(floating.device), operators, generator)
            with torch.inference_mode(), quiet_ppq():
                for name in [*seen]:  # what was visited makes room before the next part is run
                    inputs, output, gradient = seen.pop(name)
                    weight = gradient.square()
                    sizes[name] += float(weight.sum())
                    visit(Seen(name, steps[name].forward, inputs, output, weight))
    still = next((name for name, size in sizes.items() if not size > 0), None)
    if still is not None:
        raise UserError(
            f"operator {still!r}: the gradient of its output is zero for all calibration images, so it "
            "cannot weigh errors; take a score without gradients"
        )


def _run(
    program: Program, input_name: str, part: Tensor, operators: Collection[str], generator: torch.Generator
) -> dict[str, tuple[list[Tensor], Tensor, Tensor]]:
    """Inputs, output and gradient of each operator, without a history."""
    made: dict[str, tuple[list[Tensor], Tensor]] = {}

    def hook(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        made[name] = inputs, outputs[0]

    with torch.enable_grad(), quiet_ppq():
        images = part.clone().requires_grad_()
        (logits,) = program.run({input_name: images}, dict.fromkeys(operators, hook))
        loss = cross_entropy_of_own_labels(logits, generator)
        outputs = [output for _, output in made.values()]
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    return {
        name: (
            [value.detach() if isinstance(value, Tensor) else value for value in inputs],
            output.detach(),
            torch.zeros_like(output) if gradient is None else gradient,
        )
        for (name, (inputs, output)), gradient in zip(made.items(), gradients, strict=True)
    }


def cross_entropy_of_own_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over images of -log p(label), each label drawn from p = softmax(logits); last axis: classes."""
    logarithms = torch.log_softmax(logits.flatten(0, -2).double(), -1)
    labels = torch.multinomial(logarithms.detach().exp().cpu(), 1, generator=generator)
    return -logarithms.gather(1, labels.to(logits.device)).sum()
