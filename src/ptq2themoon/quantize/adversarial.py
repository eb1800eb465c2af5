"""A generator of images against a quantized model: it looks for what tells the model from floating point.

The generator learns images on which the quantized model, the student, differs from the floating-point model,
its teacher; the student learns to give there what its teacher gives. No image is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.quantize.image_generator import ImageGenerator
from ptq2themoon.quantize.image_loss import Attended, Loss, Weights
from ptq2themoon.quantize.learning.loop import Draws, Group, train
from ptq2themoon.quantize.learning.pupil import Found, Pupil, Rates
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.program import Program
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.training_settings import TrainingSettings


class Difference:
    """The mean absolute difference of a student's output from its teacher's, over images and values."""

    name = "difference"

    def __init__(self, student: Program) -> None:
        self.student = student

    def __call__(self, output: Tensor, images: Tensor, start: int) -> Tensor:
        (input_name,) = self.student.read
        (found,) = self.student.run({input_name: images})
        return (found - output).abs().mean()


def whole(model: SimulatedModel) -> Difference:
    """Of a whole model as it is quantized now, with gradients of what it reads and of its parameters."""
    return Difference(model.trainable(model.order, model.outputs))


@dataclass(frozen=True)
class Contest:
    """A generator, and what its images are judged by.

    Attributes:
        teacher: in floating point.
        outputs: of the attentions whose patches are compared.
        weights: of the parts of the generator's loss; `weights.output` is below 0: differences are wanted.
        variation: total variation that a batch is led to.
        rate: of the generator's Adam.
        batch: images in a step.
        seed: of the noise.
        state: where a training saves itself; None: nowhere.
        name: of its files there.
    """

    generator: ImageGenerator
    teacher: SimulatedModel
    outputs: Sequence[Attended]
    weights: Weights
    variation: float
    rate: float
    batch: int
    seed: int
    state: State | None
    name: str

    def loss(self, difference: Difference | None) -> Loss:
        """Of images, against a student or without one."""
        weights = self.weights if difference is not None else replace(self.weights, output=0.0)
        return Loss(self.teacher, self.outputs, weights, difference, self.variation)

    def train_generator(self, number: int, steps: int, difference: Difference | None) -> list[float]:
        """Train the generator alone; the student, if there is one, stays.

        Args:
            number: of the training, which its noise and its files go by.

        Returns:
            The generator's loss of each step.
        """
        name, loss = f"{self.name}-{number}", self.loss(difference)
        saved = self._saved(name)
        if saved is not None:
            self.generator.put(saved)
            return []
        draws, random = self._draws(name, number, "train the generator")

        def step(_: int, __: Tensor) -> tuple[Tensor, Tensor]:
            return self._generator_step(loss, random)

        groups = [Group(self.generator.parameters, self.rate)]
        losses = train(groups, step, self._training(steps), draws)
        if self.state is not None:
            self.state.save(f"{name}-whole", self.generator.kept(), {})
        return losses

    def train_both(self, number: int, steps: int, difference: Difference, rates: Rates) -> Trained:
        """Train generator and student by turns, so many steps each, the generator first."""
        name, loss = f"{self.name}-{number}", self.loss(difference)
        draws, random = self._draws(name, number, "train generator and student")
        pupil, found = Pupil(difference.student, rates, random, rounding=False), Found()
        pupil.prepare()
        saved, losses = self._saved(name), []

        def step(iteration: int, _: Tensor) -> tuple[Tensor, Tensor]:
            if iteration % 2:
                return self._student_step(difference, random)
            total, _ = self._generator_step(loss, random)
            return total, torch.tensor(loss.values[difference.name])

        if saved is None:
            groups = [Group(self.generator.parameters, self.rate, cosine=True), *pupil.groups()]
            losses = train(groups, step, self._training(2 * steps), draws)
            saved = pupil.learned() | self.generator.kept()
            if self.state is not None:
                self.state.save(f"{name}-whole", saved, {})
        self.generator.put(saved)
        pupil.settle(saved, found)
        return Trained(found, losses)

    def _generator_step(self, loss: Loss, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """What has the gradients of the generator's loss, and its value."""
        images = self.generator(self.generator.noise(self.batch, random))
        value, gradient = loss(images.detach())  # in parts: a model's activations for the batch may not fit
        return (images * gradient).sum(), torch.tensor(value)

    def _student_step(self, difference: Difference, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The last part of the batch's difference, the gradients of the others being added, and all of it."""
        with torch.no_grad():
            images = self.generator(self.generator.noise(self.batch, random))
        watched, last = torch.zeros(()), None
        for part in self.teacher.parts(images):
            if last is not None:
                last.backward()
            wanted = self.teacher(part).clone()  # what inference mode made takes no part in gradients
            with quiet_ppq():
                last = len(part) / len(images) * difference(wanted, part, 0)
            watched += last.detach().cpu()
        assert last is not None
        return last, watched

    def _draws(self, name: str, number: int, desc: str) -> tuple[Draws, torch.Generator]:
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return Draws(self.batch, random, self.state, name, desc), random

    def _training(self, steps: int) -> TrainingSettings:
        return TrainingSettings(iterations=steps, batch=self.batch)

    def _saved(self, name: str) -> dict[str, Tensor] | None:
        found = self.state.load(f"{name}-whole") if self.state is not None else None
        return None if found is None else found[0]


@dataclass(frozen=True)
class Trained:
    """What a student learned, and the difference before each step of the generator and of the student."""

    found: Found
    losses: list[float]
