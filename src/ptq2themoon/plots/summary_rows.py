"""The rows of summary.csv that belong to one model, how they are named and how each looks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from ptq2themoon.plots.style import FULL_PRECISION, LIGHT_GREY, Series, display_name, series
from ptq2themoon.vocabulary.errors import UserError, nearest

COLUMNS = (
    "model", "recipe", "bits", "calibration_images", "seed", "images",
    "top1", "agreement", "logits_sqnr_db", "output_cosine",
)  # fmt: skip


def rows_of(summary: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of `model`, FP32 first, the others in the table's order."""
    rows = summary[summary["model"] == model]
    if rows.empty:
        raise UserError(f"--model {model}: not in the summary; {nearest(model, summary['model'].unique())}")
    full = rows["recipe"] == FULL_PRECISION
    if full.sum() != 1:
        raise UserError(f"--model {model}: the summary holds {full.sum()} rows of recipe 'fp32', not one")
    return pd.concat([rows[full], rows[~full]], ignore_index=True)


def labels(rows: pd.DataFrame) -> list[str]:
    """Recipe and bits; calibration size and seed only where they tell rows apart."""
    quantized = rows[rows["recipe"] != FULL_PRECISION]
    sizes, seeds = quantized["calibration_images"].nunique() > 1, quantized["seed"].nunique() > 1
    found = []
    for row in rows.itertuples():
        parts = [display_name(row.recipe)]
        if row.recipe != FULL_PRECISION:
            parts.append(str(row.bits).upper())
            parts += [f"n {row.calibration_images:.0f}"] if sizes else []
            parts += [f"seed {row.seed:.0f}"] if seeds else []
        found.append("  ".join(parts))
    return found


def looks(rows: pd.DataFrame) -> list[Series]:
    """Of each row by its recipe."""
    recipes = [name for name in rows["recipe"].unique() if name != FULL_PRECISION]
    full = Series(LIGHT_GREY, "o", "")
    return [full if name == FULL_PRECISION else series(recipes.index(name)) for name in rows["recipe"]]


def count(rows: pd.DataFrame) -> str:
    """Number of images behind the rows."""
    low, high = rows["images"].min(), rows["images"].max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def name_rows(left: Axes, right: Axes, names: Sequence[str]) -> None:
    """One line per row, the first on top, for two panels side by side that share their names."""
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(axes is left)
        axes.grid(axis="x")
