"""The ablation for people: Markdown of its means, the study's published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ptq2themoon.markdown import table
from ptq2themoon.study.quantizing import Variant
from ptq2themoon.study.settings import AUTO

# Head and decimals of each column that people read.
SHOWN = {
    "top1": ("Top-1 (%)", 2),
    "top5": ("Top-5 (%)", 2),
    "loss": ("Loss", 4),
    "agreement": ("Agreement with FP32 (%)", 2),
    "output_cosine": ("Output cosine", 4),
    "attention_cosine": ("Attention cosine", 4),
}
READ_AS: Mapping[Variant, str] = {
    "input": "weights per input channel, as the study has them",
    "output": "weights per output channel, as integer GEMMs need them",
    "once": "weights per input channel, every activation quantized once, by the operators that read it",
}
# What a recipe quantizes per channel, for people.
ROWS = {
    "fp32": "full precision",
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
    AUTO: "found for this model (auto)",
}


def row_name(recipe: str) -> str:
    """What a recipe quantizes per channel; one of the user's own has only its name."""
    return ROWS.get(recipe, recipe)


def with_deviation(mean: Any, deviation: Any, decimals: int) -> str:
    """`71.50 ± 0.12`; without the second part where there is no deviation, a dash without the first."""
    if pd.isna(mean):
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if pd.isna(deviation) else f"{text} ± {deviation:.{decimals}f}"


def ablation_markdown(
    means: pd.DataFrame, floating: Mapping[str, Any], published: pd.DataFrame, model: str, variant: Variant
) -> str:
    """One table for each bits: a row a recipe, full precision last, the published top-1 at the right.

    Args:
        means: as `ablation.means`, of one variant.
        floating: fp32.json.
        published: resources/study/ablation.csv.
    """
    first = means.iloc[0]
    lines = [
        f"# Ablation of {model}: {READ_AS[variant]}",
        "",
        f"Means ± standard deviation over {first['seeds']} draws of {first['calibration_images']} images",
        f"to calibrate with; {first['images']} evaluation images. The last column is the study's own,",
        "on ViT-Base, ImageNet and W8A8: to be compared in order, not in size.",
    ]
    theirs = published.set_index("recipe")["top1"]
    for bits, rows in means.groupby("bits", sort=False):
        shown = [name for name in SHOWN if rows[name].notna().any()]
        header = ["Per channel", "Recipe", *(SHOWN[name][0] for name in shown), "The study's top-1 (%)"]
        body = [
            [
                row_name(row["recipe"]),
                f"`{row['recipe']}`",
                *(with_deviation(row[name], row[f"{name}_std"], SHOWN[name][1]) for name in shown),
                with_deviation(theirs.get(row["recipe"]), None, 2),
            ]
            for _, row in rows.iterrows()
        ]
        body.append(_floating(floating, shown, theirs))
        lines += ["", f"## {bits.upper()}", "", *table(header, body)]
    return "\n".join(lines) + "\n"


def _floating(floating: Mapping[str, Any], shown: Sequence[str], theirs: pd.Series) -> list[str]:
    own = [with_deviation(floating.get(name), None, SHOWN[name][1]) for name in shown]
    return [row_name("fp32"), "–", *own, with_deviation(theirs.get("fp32"), None, 2)]
