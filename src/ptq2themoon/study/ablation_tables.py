"""The ablation for people: Markdown of its means, the study's published figures beside ours."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ptq2themoon.study.names import READ_AS, row_name
from ptq2themoon.tables.markdown import table as markdown_table
from ptq2themoon.vocabulary.study_layout import Variant

# Head and decimals of each column that people read.
SHOWN = {
    "top1": ("Top-1 (%)", 2),
    "top5": ("Top-5 (%)", 2),
    "loss": ("Loss", 4),
    "agreement": ("Agreement with FP32 (%)", 2),
    "output_cosine": ("Output cosine", 4),
    "attention_cosine": ("Attention cosine", 4),
}


def with_deviation(mean: Any, deviation: Any, decimals: int) -> str:
    """`71.50 ± 0.12`; without the second part where there is no deviation, a dash without the first."""
    if pd.isna(mean):
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if pd.isna(deviation) else f"{text} ± {deviation:.{decimals}f}"


def ablation_markdown(table: pd.DataFrame, model: str, variant: Variant) -> str:
    """One table per bits: one row per recipe, full precision last, the published top-1 at the right.

    Args:
        table: as `ablation.with_references` makes it.
    """
    first = table.iloc[0]
    seeds, drawn, images = (int(first[name]) for name in ("seeds", "calibration_images", "images"))
    lines = [
        f"# Ablation of {model}: {READ_AS[variant]}",
        "",
        f"Means ± standard deviation over {seeds} draws of {drawn} calibration images; {images} test",
        "images. The last column is the study's own, on ViT-Base, ImageNet and W8A8: to be compared in",
        "order, not in size.",
    ]
    for bits, rows in table.groupby("bits", sort=False):
        shown = [name for name in SHOWN if rows[name][:-1].notna().any()]
        header = ["Per channel", "Recipe", *(SHOWN[name][0] for name in shown), "The study's top-1 (%)"]
        body = [
            [
                row_name(row["recipe"]),
                f"`{row['recipe']}`",
                *(with_deviation(row[name], row[f"{name}_std"], SHOWN[name][1]) for name in shown),
                with_deviation(row["published_top1"], None, 2),
            ]
            for _, row in rows.iterrows()
        ]
        lines += ["", f"## {bits.upper()}", "", *markdown_table(header, body)]
    return "\n".join(lines) + "\n"
