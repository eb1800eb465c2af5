"""Settings of training that recipes can give, for all methods that learn."""

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
    """The preset of a training; tables and figures name it."""

    preset: Preset = "quick"
    """quick: minutes on a CPU, far less than in papers; paper: as in the paper, for a GPU."""

    def or_preset(self, given: Number | None, by_preset: Mapping[Preset, Number]) -> Number:
        """What a recipe gave, else what the preset has."""
        return by_preset[self.preset] if given is None else given


class TrainingSettings(PresetSettings):
    """Length, images and memory of a training."""

    iterations: Annotated[int | None, Field(ge=0)] = None
    """Iterations for each unit; null: as in the preset; 0: nothing is learned."""
    batch: Annotated[int | None, Field(ge=1)] = None
    """Images in an iteration; null: as in the preset."""
    images: Annotated[int | None, Field(ge=1)] = None
    """How many calibration images to train on, the first ones; null: all."""
    patience: Annotated[int | None, Field(ge=1)] = None
    """A unit ends when this number of steps lowers its mean loss by less than 0.1 %; null: never."""
    memory_mb: Annotated[int, Field(ge=0)] = 2000
    """Activations in memory for one unit, in MB; the rest is in files of the temporary folder."""

    @property
    def steps(self) -> int:
        """Iterations of a unit."""
        return self.or_preset(self.iterations, ITERATIONS)

    @property
    def batch_size(self) -> int:
        """Images in an iteration."""
        return self.or_preset(self.batch, BATCH)


class RoundingSettings(TrainingSettings):
    """Settings of a training that learns how weights are rounded."""

    rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of Adam; null: as in the preset, 1e-2 for quick and 1e-3 for paper."""
    regularizer: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the loss for weights that are not yet rounded to one side; lambda in AdaRound."""
    warm: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the iterations before the regularizer starts."""
    beta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (20.0, 2.0)
    """First and last exponent of the regularizer: how soon weights near the middle move to one side."""

    def schedule(self) -> dict[str, Any]:
        """As `Learning` takes it."""
        rate = self.or_preset(self.rate, RATE)
        return {"rate": rate, "weigh": self.regularizer, "warm": self.warm, "beta": self.beta}


class ReconstructionSettings(RoundingSettings):
    """Settings of a training that also learns scales of activations, block by block."""

    loss: Literal["mse", "brecq", "aph", "fima"] = "mse"
    """Loss of a block's output: squared errors (`mse`), or weighted ones as in the paper of that name."""
    scale_rate: Annotated[float | None, Field(ge=0)] = None
    """Learning rate of activations' scales, with cosine decay; 0: fixed scales; null: as in the preset."""

    def schedule(self) -> dict[str, Any]:
        """As `Learning` takes it."""
        rate = self.or_preset(self.scale_rate, SCALE_RATE)
        return {**super().schedule(), "scale_rate": rate}
