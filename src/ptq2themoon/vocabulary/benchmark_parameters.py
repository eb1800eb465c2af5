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
    """timm models with random weights, to be timed besides `models`."""
    stretched: bool = False
    """Each timm model of `models` is timed and evaluated with outlier channels besides: the same function."""
    recipes: Annotated[list[Name], *UNIQUE] = ["ship"]
    """Files of recipes/, without `.yaml`, to be timed besides those of `recipes`."""
    learned: Annotated[list[Name], *UNIQUE] = []
    """The same, but not for the architectures: what trains says nothing of random weights."""
    images: Positive = 32
    """Calibration images of the architectures."""
    evaluation_images: Positive = 2000
    """At most so many of the evaluation images, for each model of each tool."""
    batches: Annotated[list[Positive], *SOME] = [1, 8]
    """Images at once."""
    rounds: Positive = 21
    """How often each model runs, by turns with all the others."""
    simulation_rounds: Positive = 3
    """The same for the simulation and the calibration, which take longer."""
    threads: Positive = 2
    """Of each runtime."""

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
