"""The section `data_free` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.folder_names import Label, Name
from ptq2themoon.vocabulary.validation import SOME, Positive, Strict


class DataFree(Strict):
    """`snakemake data_free`: calibration on real images, on images made from the model, and on noise."""

    sources: Annotated[
        dict[Label, Name], Field(min_length=1, json_schema_extra={"additionalProperties": False})
    ] = {
        "real": "papers",
        "generated": "psaq_vit",
        "noise": "psaq_vit_noise",
    }
    """What figures call a source of calibration images, and the recipe, a file of recipes/, that takes it."""
    bits: Annotated[list[Bits], *SOME] = ["w8a8", "w4a8", "w4a4"]
    """Bits of weights and activations."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 1, 2]
    """A seed draws the real images, and is that of the noise and of all that is made from it."""
    calibration_images: Positive = 32
    """How many real images are drawn; how many are made is a setting of the method."""
    images: Positive = 500
    """Evaluation images, at most."""
    shown: Positive = 8
    """Calibration images of each source in the figure, of the first seed."""
