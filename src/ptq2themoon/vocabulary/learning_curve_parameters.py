"""The section `learning_curve` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.validation import SOME, Positive, Strict


class LearningCurve(Strict):
    """`snakemake learning_curve`: accuracy against iterations, for recipes with methods that learn."""

    recipes: Annotated[list[Name], *SOME] = ["adaround", "qdrop"]
    """Files of recipes/, without `.yaml`."""
    bits: Bits = "w3a3"
    """Bits of weights and activations."""
    iterations: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 10, 30, 100, 300]
    """Iterations of each unit that a method trains; they replace those of the recipe."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0]
    """A seed draws the calibration images, and is the seed of methods."""
    calibration_images: Positive = 32
    """How many calibration images are drawn."""
    images: Positive = 500
    """Evaluation images, at most."""
