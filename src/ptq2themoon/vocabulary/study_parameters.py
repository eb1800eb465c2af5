"""The section `study` of params.yaml, and the recipes that have a part of their own in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from ptq2themoon.vocabulary.bits import Bits, parse_bits
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.validation import SOME, Positive, Strict

BASE = "vanilla"  # all per tensor: what the others are measured against
NORMS = "layernorm"  # the least that the study quantizes per channel
CUSTOMIZED = "customized"  # the study's own choice of operators
CHANNELWISE = "layernorm_all"  # all that the study quantizes per channel in any row
ACTIVATIONS_ONLY = "layernorm_all_activations"  # as CHANNELWISE, with per-tensor weights
AUTO = "auto"  # what the study's method chooses for the model at hand

# The layers whose inputs are looked at, each with the roles that it has by exporter or model.
LAYERS = {"qkv": ("qkv", "q", "k", "v", "qk", "kv"), "proj": ("proj",), "fc1": ("fc1",), "fc2": ("fc2",)}


class Study(Strict):
    """`snakemake study`: which operators need per-channel scales."""

    recipes: Annotated[list[Name], *SOME] = [
        BASE,
        NORMS,
        "layernorm_fc1",
        "layernorm_fc2",
        "layernorm_qkv",
        "layernorm_proj",
        CHANNELWISE,
        "layernorm_all_but_fc2",
        "layernorm_fc2_0_to_5",
        CUSTOMIZED,
        ACTIVATIONS_ONLY,
    ]
    """Rows of the ablation: files of recipes/; leave out recipes with blocks that a model lacks."""
    bits: Annotated[list[Bits], Field(min_length=2, json_schema_extra={"uniqueItems": True})] = [
        "w8a8",
        "w6a6",
        "w5a5",
        "w4a4",
    ]
    """The ablation runs at the first bits, and at the next at which `vanilla` loses more than `loss`."""
    loss: float = Field(default=5.0, ge=0)
    """A loss of top-1 in percentage points; without labels, of agreement with FP32."""
    images: Positive = 500
    """Evaluation images of the ablation, at most."""
    calibration_images: Positive = 64
    """Calibration images of the ablation; the rest of the study uses those of `calibration`."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME] = [0, 1, 2]
    """The ablation is repeated for each: a seed draws its own calibration images."""
    share: float = Field(default=0.9, gt=0, le=1)
    """The share of the removable error that the recipe `auto` must remove."""
    ranking_images: Positive = 64
    """Calibration images for the ranking of operators and the search of `auto`."""
    input_images: Positive = 64
    """Evaluation images for the ranges and errors of the layers' inputs."""
    block: int = 5
    """The block whose inputs have their own figure; a negative number counts from the end."""
    rounds: Positive = 11
    """How often each graph is timed with and without fusion."""

    @field_validator("bits")
    @classmethod
    def _narrower(cls, bits: list[str]) -> list[str]:
        for wide, narrow in pairwise(bits):
            (w, a), (v, b) = parse_bits(wide), parse_bits(narrow)
            if (v, b) == (w, a) or v > w or b > a:
                raise ValueError(f"{narrow!r} is not narrower than {wide!r} before it; begin with the widest")
        return bits

    @field_validator("recipes")
    @classmethod
    def _not_auto(cls, recipes: list[str]) -> list[str]:
        if AUTO in recipes:
            raise ValueError(
                f"{AUTO!r} is the recipe that the study writes; leave it out, it is always a row"
            )
        return recipes
