"""What the study's tables name: variants, rows, measures, tokens, blocks. Without torch, for figures too."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32
from ptq2themoon.vocabulary.study_layout import Variant
from ptq2themoon.vocabulary.study_parameters import AUTO

ALL, PATCH, CLASS = "all", "patch", "class"
KINDS = (CLASS, PATCH)

PER_TENSOR, PER_CHANNEL = "per tensor", "per channel"
QUANTIZERS = (PER_TENSOR, PER_CHANNEL)

READ_AS: Mapping[Variant, str] = {
    "input": "weights per input channel, as the study has them",
    "output": "weights per output channel, as integer GEMMs need them",
    "once": "weights per input channel, every activation quantized once, by the operators that read it",
}

# What a loss in points is counted in: the first that a model has. Its factor, and its name on an axis.
MEASURES = {
    "top1": (1.0, "top-1 (%)"),
    "agreement": (1.0, "agreement with FP32 (%)"),
    "output_cosine": (100.0, "output cosine × 100"),
}


def measure_of(table: pd.DataFrame) -> str:
    """The first of `MEASURES` that any quantized row of an ablation's table has."""
    quantized = table[table["recipe"] != FP32]
    return next(name for name in MEASURES if quantized[name].notna().any())


# What a recipe quantizes per channel, for people.
ROWS = {
    FP32: "full precision",
    "vanilla": "nothing",
    "layernorm": "LayerNorm",
    "layernorm_fc1": "LayerNorm, fc1",
    "layernorm_fc2": "LayerNorm, fc2",
    "layernorm_qkv": "LayerNorm, qkv",
    "layernorm_proj": "LayerNorm, proj",
    "layernorm_all": "LayerNorm, all four",
    "layernorm_all_but_fc2": "LayerNorm, all but fc2",
    "layernorm_fc2_0_to_5": "LayerNorm, fc2 of blocks 0-5",
    "customized": "LayerNorm, fc2 of blocks 5-6",
    "layernorm_all_activations": "LayerNorm, all four, activations only",
    AUTO: "found for this model (auto, quantized once)",
}


def row_name(recipe: str) -> str:
    """What a recipe quantizes per channel; one of the user's own has only its name."""
    return ROWS.get(recipe, recipe)


def block_index(block: int, count: int, name: str) -> int:
    """The index of a block from 0; a negative one counts from the end.

    Raises:
        UserError: a block that the model does not have.
    """
    if not -count <= block < count:
        nearest = min(max(block, -count), count - 1)
        raise UserError(f"{name} {block}: the model has {count} blocks; nearest valid: {nearest}")
    return block % count
