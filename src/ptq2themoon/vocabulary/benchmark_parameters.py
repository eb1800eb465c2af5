"""The section `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from ptq2themoon.vocabulary.benchmark_layout import RANDOM, WEIGHTS
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.model_parameters import Model
from ptq2themoon.vocabulary.validation import SOME, UNIQUE, Positive, Strict


class Benchmark(Strict):
    """`snakemake benchmark`: speed, size and accuracy beside those of other tools, on this machine."""

    architectures: Annotated[list[Name], *UNIQUE] = ["deit_tiny_patch16_224", "vit_small_patch16_224"]
    """timm models with random weights, timed in addition to `models`."""
    stretched: bool = False
    """true: also measure each timm model of `models` with outlier channels and the same function."""
    recipes: Annotated[list[Name], *UNIQUE] = ["ship"]
    """Files of recipes/, without `.yaml`, measured in addition to `recipes`."""
    learned: Annotated[list[Name], *UNIQUE] = []
    """The same, but not for `architectures`: training needs real weights."""
    images: Positive = 32
    """Calibration images of the architectures."""
    evaluation_images: Positive = 2000
    """Evaluation images for each model of each tool, at most."""
    batches: Annotated[list[Positive], *SOME] = [1, 8]
    """Batches: images per run."""
    rounds: Positive = 21
    """How often each model runs; each round runs all models."""
    simulation_rounds: Positive = 3
    """The same for simulation and calibration, which take longer."""
    threads: Positive = 2
    """Threads of each runtime."""

    @property
    def random(self) -> dict[str, Model]:
        """The architectures as models, by the name of their folder."""
        return {
            RANDOM.format(architecture=name): Model(
                source=name,
                dataset=RANDOM.format(architecture=name),
                checkpoint=WEIGHTS.format(architecture=name),
            )
            for name in self.architectures
        }
