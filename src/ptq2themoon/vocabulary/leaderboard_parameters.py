"""The section `leaderboard` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.validation import SOME, UNIQUE, Positive, Strict


class Leaderboard(Strict):
    """`snakemake leaderboard`: recipes on the same images, seeds and bits, with tests of differences."""

    recipes: Annotated[list[Name], *SOME] = ["papers", "repq_vit", "ship", "vanilla"]
    """Files of recipes/, without `.yaml`: one row per recipe and bits."""
    bases: Annotated[list[Name], *UNIQUE] = ["papers", "vanilla"]
    """Recipes to compare with; each row is compared with the first one of its protocol."""
    bits: Annotated[list[Bits], *SOME] = ["w8a8", "w6a6", "w4a4", "w3a3", "w4a8"]
    """Bits of weights and activations."""
    bits_of: dict[str, Annotated[list[Bits], *SOME]] = {}
    """Other bits for single recipes, such as recipes that train for minutes, by recipe name."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 1, 2]
    """Each recipe is calibrated once per seed; a seed draws its own calibration images."""
    calibration_images: Positive = 32
    """How many calibration images are drawn."""
    images: Positive = 500
    """Evaluation images, at most."""

    def bits_for(self, recipe: str) -> list[Bits]:
        """Bits of a recipe's rows."""
        return self.bits_of.get(recipe, self.bits)
