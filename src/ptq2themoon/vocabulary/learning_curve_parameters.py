"""The section `learning_curve` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.validation import SOME, Positive, Strict


class LearningCurve(Strict):
    """`snakemake learning_curve`: what more iterations bring to recipes with methods that learn."""

    recipes: Annotated[list[Name], *SOME] = ["adaround", "qdrop"]
    """Files of recipes/, without `.yaml`."""
    bits: Bits = "w3a3"
    """Bits of weights and activations."""
    iterations: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 10, 30, 100, 300]
    """Of each unit that a method trains, in the place of what the recipe says."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0]
    """A seed draws the calibration images, and is that of what methods draw."""
    calibration_images: Positive = 32
    """How many images are drawn to train on."""
    images: Positive = 500
    """Evaluation images, at most."""
