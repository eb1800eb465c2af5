"""What recipes can say of a method's training, whatever it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from ptq2themoon.vocabulary.validation import Strict

Preset = Literal["quick", "paper"]
Number = TypeVar("Number", int, float)
ITERATIONS: dict[Preset, int] = {"quick": 100, "paper": 20_000}
BATCH: dict[Preset, int] = {"quick": 16, "paper": 32}
RATE: dict[Preset, float] = {"quick": 1e-2, "paper": 1e-3}
SCALE_RATE: dict[Preset, float] = {"quick": 1e-3, "paper": 4e-5}


class PresetSettings(Strict):
    """Of whatever trains: figures say which of these it was."""

    preset: Preset = "quick"
    """quick: what a CPU does in minutes, and far from the papers' effort; paper: theirs, for a GPU."""

    def or_preset(self, given: Number | None, by_preset: Mapping[Preset, Number]) -> Number:
        """What a recipe gave, else what the preset has."""
        return by_preset[self.preset] if given is None else given


class TrainingSettings(PresetSettings):
    """How long, with what, and within which memory."""

    iterations: Annotated[int | None, Field(ge=0)] = None
    """Steps for each unit that is trained; null: the preset's; 0: nothing is learned."""
    batch: Annotated[int | None, Field(ge=1)] = None
    """Images in a step; null: the preset's."""
    images: Annotated[int | None, Field(ge=1)] = None
    """How many of the calibration images to train on, the first ones; null: all."""
    patience: Annotated[int | None, Field(ge=1)] = None
    """End a unit when the mean loss of so many steps is less than 0.1 % below that of as many before."""
    memory_mb: Annotated[int, Field(ge=0)] = 2000
    """Of activations kept for one unit; what exceeds it lies in files of the temporary folder."""

    @property
    def steps(self) -> int:
        """Iterations of a unit."""
        return self.or_preset(self.iterations, ITERATIONS)

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return self.or_preset(self.batch, BATCH)


class RoundingSettings(TrainingSettings):
    """Of a training that learns how weights are rounded."""

    rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of Adam; null: the preset's, 1e-2 for the few iterations of quick and 1e-3 for paper."""
    regularizer: Annotated[float, Field(ge=0)] = 0.01
    """How much weights that are not yet rounded to one side count; lambda in AdaRound."""
    warm: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the iterations before that counts at all."""
    beta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (20.0, 2.0)
    """Its exponent, first and last: how soon weights near the middle are pushed to one side."""

    def schedule(self) -> dict[str, Any]:
        """As `Learning` takes it."""
        rate = self.or_preset(self.rate, RATE)
        return {"rate": rate, "weigh": self.regularizer, "warm": self.warm, "beta": self.beta}


class ReconstructionSettings(RoundingSettings):
    """Of a training that learns scales of activations too, block by block."""

    loss: Literal["mse", "brecq", "aph", "fima"] = "mse"
    """What weighs the squared errors of a block's output."""
    scale_rate: Annotated[float | None, Field(ge=0)] = None
    """Learning rate of activations' scales, falling along half a cosine; 0: they stay; null: the preset's."""

    def schedule(self) -> dict[str, Any]:
        """As `Learning` takes it."""
        rate = self.or_preset(self.scale_rate, SCALE_RATE)
        return {**super().schedule(), "scale_rate": rate}
