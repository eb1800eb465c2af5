"""The section `data_free` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.folder_names import Label, Name
from ptq2themoon.vocabulary.validation import SOME, Positive, Strict


class DataFree(Strict):
    """`snakemake data_free`: calibration on real images, on images generated from the model, and on noise."""

    sources: Annotated[
        dict[Label, Name], Field(min_length=1, json_schema_extra={"additionalProperties": False})
    ] = {
        "real": "papers",
        "generated": "psaq_vit",
        "noise": "psaq_vit_noise",
    }
    """Sources of calibration images: the name in figures, and the recipe, a file of recipes/."""
    bits: Annotated[list[Bits], *SOME] = ["w8a8", "w4a8", "w4a4"]
    """Bits of weights and activations."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 1, 2]
    """A seed draws the real images, and is the seed of noise and generated images."""
    calibration_images: Positive = 32
    """How many real images are drawn; the number of generated images is a setting of the method."""
    images: Positive = 500
    """Evaluation images, at most."""
    shown: Positive = 8
    """How many images of each source the figure shows, from the first seed."""
