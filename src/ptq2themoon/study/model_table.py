"""All models beside each other: full precision and the quantizers that the study compares."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ptq2themoon.study.ablation import FP32
from ptq2themoon.study.ablation_tables import with_deviation
from ptq2themoon.study.names import MEASURES, measure_of
from ptq2themoon.tables.markdown import signed, table
from ptq2themoon.vocabulary.study_parameters import AUTO, BASE, CUSTOMIZED, NORMS

COMPARED = (BASE, NORMS, CUSTOMIZED, AUTO)
PLAIN, ONCE = "as the recipe says", "quantized once"


def model_rows(model: str, plain: pd.DataFrame, once: pd.DataFrame) -> list[dict[str, Any]]:
    """Full precision, then each of `COMPARED`, for each bits and way to read a recipe.

    auto quantizes each activation once: where others were read so too, it stands among those only.
    value, std and change are in points of `measure`; change is the row's value less full precision's.

    Args:
        plain, once: ablation_input.csv and ablation_once.csv.
    """
    measure = measure_of(plain)
    factor, _ = MEASURES[measure]
    full = factor * float(plain.loc[plain["recipe"] == FP32, measure].iloc[0])
    facts = {"model": model, "measure": measure, "images": int(plain["images"].iloc[0])}
    rows = [{**facts, "bits": FP32, "reading": "", "recipe": FP32, "value": full, "change": 0.0}]
    for reading, means in ((PLAIN, plain), (ONCE, once)):
        for bits, group in means.groupby("bits", sort=False):
            for recipe in COMPARED:
                if recipe == AUTO and reading == PLAIN and (once["bits"] == bits).any():
                    continue
                for row in group[group["recipe"] == recipe].to_dict("records"):
                    value = factor * float(row[measure])
                    found = {"value": value, "std": factor * row[f"{measure}_std"], "change": value - full}
                    place = {"bits": bits, "reading": reading, "recipe": recipe, "seeds": int(row["seeds"])}
                    rows.append({**facts, **place, **found})
    return rows


def models_markdown(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """Our models, one line per model, bits and reading; below, apart, the study's published ones.

    Args:
        rows: of `model_rows`, all models.
        published: resources/study/models.csv.
    """
    header = ["Model", "Bits", "Activations", "Measure", "FP32", *COMPARED]
    lines = []
    quantized = rows[rows["bits"] != FP32]
    for (model, bits, reading), own in quantized.groupby(["model", "bits", "reading"], sort=False):
        full = rows[(rows["model"] == model) & (rows["bits"] == FP32)].iloc[0]
        cells = [_cell(own[own["recipe"] == recipe]) for recipe in COMPARED]
        lines.append([model, bits, reading, MEASURES[full["measure"]][1], f"{full['value']:.2f}", *cells])
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
            "Means ± standard deviation over seeds; in brackets the change against FP32, in points.",
            f"`{AUTO}` quantizes each activation once; where others were read so too, it stands among those.",
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
    value, deviation, change = row.iloc[0][["value", "std", "change"]]
    return f"{with_deviation(value, deviation, 2)} ({signed(change)})"
