"""The ablation as bars: one panel for each bits, and the study's published figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.style import FULL_PRECISION, LIGHT_GREY, Series, series, styled
from ptq2themoon.study.names import MEASURES, row_name

ABLATION_COLUMNS = ("recipe", "bits", "seeds", "images", *MEASURES, *(f"{name}_std" for name in MEASURES))
PUBLISHED_COLUMNS = ("recipe", "top1")
PUBLISHED = Series("#CC79A7", "", "...")


@styled
def ablation(
    table: pd.DataFrame,
    floating: Mapping[str, Any],
    published: pd.DataFrame,
    title: str,
) -> Figure:
    """Bars from 0, a row a recipe, full precision last; whiskers are one standard deviation over seeds.

    Args:
        table: means of one variant, as the stage study_table writes them.
        floating: fp32.json.
        published: resources/study/ablation.csv, a panel of its own.
    """
    measure = next(name for name in MEASURES if table[name].notna().any())
    recipes = [*dict.fromkeys(table["recipe"]), FULL_PRECISION]
    bits = list(dict.fromkeys(table["bits"]))
    figure = Figure(figsize=(4.2 + 2.25 * (len(bits) + 1), 1.55 + 0.29 * len(recipes)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    *panels, theirs = figure.subplots(1, len(bits) + 1, sharey=True)
    seeds, images = int(table["seeds"].max()), int(table["images"].max())
    for number, (axes, each) in enumerate(zip(panels, bits, strict=True)):
        rows = table[table["bits"] == each].set_index("recipe")
        _bars(axes, recipes, _values(rows, floating, measure), series(number))
        axes.set_title(f"{each.upper()}, ours")
        axes.set_xlabel(f"{MEASURES[measure][1]}, n = {images:,}\nwhiskers: ± 1 σ of {seeds} seeds")
    known = published.set_index("recipe")["top1"]
    _bars(
        theirs, recipes, {name: (float(known[name]), np.nan) for name in recipes if name in known}, PUBLISHED
    )
    theirs.set_title("W8A8, published")
    theirs.set_xlabel("top-1 (%), n = 10,000\nViT-Base, ImageNet; the study's")
    panels[0].set_yticks(range(len(recipes)), [row_name(name) for name in recipes])
    panels[0].set_ylim(len(recipes) - 0.4, -0.6)
    return figure


def _values(rows: pd.DataFrame, floating: Mapping[str, Any], measure: str) -> dict[str, tuple[float, float]]:
    """(mean, deviation) by recipe, in what the axis counts."""
    factor, _ = MEASURES[measure]
    found = {
        str(name): (factor * float(row[measure]), factor * float(row[f"{measure}_std"]))
        for name, row in rows.iterrows()
    }
    full = floating.get(measure) if measure == "top1" else 100.0  # FP32 agrees with itself
    return {**found, FULL_PRECISION: (float(full) if full is not None else 100.0, np.nan)}


def _bars(
    axes: Axes, recipes: Sequence[str], values: Mapping[str, tuple[float, float]], look: Series
) -> None:
    for y, recipe in enumerate(recipes):
        if recipe not in values:
            axes.text(1.5, y, "not there", va="center", color=LIGHT_GREY, fontsize=7.5)
            continue
        mean, deviation = values[recipe]
        full = recipe == FULL_PRECISION
        bar = axes.barh(y, mean, height=0.68, color=LIGHT_GREY if full else look.colour, edgecolor="white")[0]
        bar.set_linewidth(0)
        bar.set_hatch("" if full else look.hatch)
        end = mean
        if np.isfinite(deviation):
            axes.errorbar(mean, y, xerr=deviation, color="black", linewidth=1, capsize=2)
            end += deviation
        axes.text(end + 2, y, f"{mean:.2f}", va="center", fontsize=7.5)
    axes.set_xlim(0, 122)
    axes.set_xticks(range(0, 101, 25))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
