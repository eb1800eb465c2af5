"""All models: full precision beside each quantizer that the study compares, and what each loses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.style import FULL_PRECISION, LIGHT_GREY, Series, display_name, series, styled
from ptq2themoon.study.names import MEASURES
from ptq2themoon.tables.markdown import signed

MODELS_COLUMNS = ("model", "bits", "reading", "recipe", "measure", "value", "std", "change", "images")


@styled
def models(table: pd.DataFrame) -> Figure:
    """A group of bars for each model, bits and reading, from 0; the change against FP32 beside each value."""
    groups = list(
        table[table["bits"] != FULL_PRECISION][["model", "bits", "reading"]]
        .drop_duplicates()
        .itertuples(index=False)
    )
    recipes = [name for name in dict.fromkeys(table["recipe"]) if name != FULL_PRECISION]
    looks = {name: series(number) for number, name in enumerate(recipes)}
    looks[FULL_PRECISION] = Series(LIGHT_GREY, "o", "")
    lines = [_group(table, *group) for group in groups]
    count = sum(map(len, lines))
    figure = Figure(figsize=(7.6, 1.3 + 0.24 * count + 0.32 * len(groups)), layout="constrained")
    axes = figure.subplots()
    y, ticks, names = 0.0, [], []
    for group, rows in zip(groups, lines, strict=True):
        axes.text(0, y, f"{group.model}, {group.bits.upper()}, {group.reading}", weight="bold", va="center")
        for row in rows:
            y += 1
            _bar(axes, y, row, looks[row["recipe"]])
            ticks.append(y)
            names.append(display_name(row["recipe"]))
        y += 1.35
    axes.set_yticks(ticks, names)
    axes.set_ylim(y - 0.5, -0.8)
    axes.set_xlim(0, 128)
    axes.set_xticks(range(0, 101, 20))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    kinds = " or ".join(MEASURES[name][1] for name in dict.fromkeys(table["measure"]))
    axes.set_xlabel(f"{kinds}; in brackets the change against FP32 in points; whiskers: ± 1 σ over seeds")
    axes.set_title("Full precision and quantized, all models")
    return figure


def _group(table: pd.DataFrame, model: str, bits: str, reading: str) -> list[dict[str, Any]]:
    own = table[table["model"] == model]
    there = (own["bits"] == FULL_PRECISION) | ((own["bits"] == bits) & (own["reading"] == reading))
    return own[there].to_dict("records")


def _bar(axes: Axes, y: float, row: dict[str, Any], look: Series) -> None:
    bar = axes.barh(y, row["value"], height=0.74, color=look.colour, edgecolor="white", linewidth=0)[0]
    bar.set_hatch(look.hatch)
    end, text = row["value"], f"{row['value']:.2f}"
    if np.isfinite(row["std"]):
        axes.errorbar(row["value"], y, xerr=row["std"], color="black", linewidth=1, capsize=2)
        end += row["std"]
    if row["recipe"] != FULL_PRECISION:
        text += f" ({signed(row['change'])})"
    axes.text(end + 1.5, y, text, va="center", fontsize=7.5)
