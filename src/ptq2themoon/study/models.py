"""All models beside each other: full precision and the quantizers that the study compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ptq2themoon.markdown import signed, table
from ptq2themoon.study.ablation import METRICS, points
from ptq2themoon.study.names import MEASURES
from ptq2themoon.study.settings import AUTO, BASE, CUSTOMIZED, NORMS
from ptq2themoon.study.tables import with_deviation

COMPARED = (BASE, NORMS, CUSTOMIZED, AUTO)
FP32 = "fp32"


def model_rows(model: str, floating: Mapping[str, Any], means: pd.DataFrame) -> list[dict[str, Any]]:
    """Full precision, then each of `COMPARED` that the ablation has, for each bits.

    value, std and drop are in points of `measure`; drop is full precision's value less the row's.
    """
    compared = means[means["recipe"].isin(COMPARED)]
    known = {name: compared[name].iloc[0] if compared[name].notna().any() else None for name in METRICS}
    measure, _ = points(known)
    factor, _ = MEASURES[measure]
    full = float(floating["top1"]) if measure == "top1" else 100.0
    facts = {"model": model, "measure": measure, "images": int(means["images"].iloc[0])}
    rows: list[dict[str, Any]] = [{**facts, "bits": FP32, "recipe": FP32, "value": full, "drop": 0.0}]
    for bits in dict.fromkeys(compared["bits"]):
        for recipe in COMPARED:
            for _, row in compared[(compared["bits"] == bits) & (compared["recipe"] == recipe)].iterrows():
                value = factor * float(row[measure])
                rows.append(
                    {
                        **facts,
                        "bits": bits,
                        "recipe": recipe,
                        "seeds": int(row["seeds"]),
                        "value": value,
                        "std": factor * float(row[f"{measure}_std"]),
                        "drop": full - value,
                    }
                )
    return rows


def models_markdown(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """Our models, a line a model and bits; below, apart, the study's published ones.

    Args:
        rows: of `model_rows`, all models.
        published: resources/study/models.csv.
    """
    header = ["Model", "Bits", "Measure", "FP32", *COMPARED]
    lines = []
    for (model, bits), own in rows[rows["bits"] != FP32].groupby(["model", "bits"], sort=False):
        full = rows[(rows["model"] == model) & (rows["bits"] == FP32)].iloc[0]
        cells = [_cell(own[own["recipe"] == recipe]) for recipe in COMPARED]
        lines.append([model, bits, MEASURES[full["measure"]], f"{full['value']:.2f}", *cells])
    theirs = [
        [
            row.model,
            f"{row.top1_full_precision:.2f}",
            f"{row.top1_quantized_w8a8:.2f} ({signed(row.top1_quantized_w8a8 - row.top1_full_precision)})",
        ]
        for row in published.itertuples()
    ]
    return "\n".join(
        [
            "# Models",
            "",
            "Means ± standard deviation over seeds; in brackets the loss against FP32, in points.",
            "",
            *table(header, lines),
            "",
            "## The study's published models, on ImageNet",
            "",
            *table(["Model", "Top-1 (%), full precision", "Top-1 (%), W8A8, the study's quantizer"], theirs),
            "",
        ]
    )


def _cell(row: pd.DataFrame) -> str:
    if row.empty:
        return "–"
    value, deviation, drop = row.iloc[0][["value", "std", "drop"]]
    return f"{with_deviation(value, deviation, 2)} ({signed(-drop)})"
