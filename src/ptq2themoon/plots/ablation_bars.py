"""The ablation as bars: one panel for each bits, and the study's published figures beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.style import FULL_PRECISION, GREY, LIGHT_GREY, Series, series, styled
from ptq2themoon.study.names import MEASURES, measure_of, row_name
from ptq2themoon.tables.markdown import signed

ABLATION_COLUMNS = (
    *("recipe", "bits", "seeds", "images", "published_top1"),
    *(*MEASURES, *(f"{name}_std" for name in MEASURES)),
)
CLOSE = 5.0  # between the rows of a panel, in points or percent
RIGHT = 122.0  # of the axes: bars end at 100, numbers stand beside them
PUBLISHED = Series("#CC79A7", "", "---")


@styled
def ablation(table: pd.DataFrame, title: str) -> Figure:
    """Bars from 0, one row per recipe, full precision last; whiskers are one standard deviation over seeds.

    Where all rows lie close, bars would look equal: points then show the differences from full precision.

    Args:
        table: of one variant, as the stage study_table writes it; the published figures have a panel of
            their own.
    """
    measured = table[table["recipe"] != FULL_PRECISION]
    measure = measure_of(table)
    recipes, bits = list(dict.fromkeys(table["recipe"])), list(dict.fromkeys(table["bits"]))
    figure = Figure(figsize=(4.2 + 2.25 * (len(bits) + 1), 1.55 + 0.29 * len(recipes)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    *panels, theirs = figure.subplots(1, len(bits) + 1, sharey=True)
    seeds, images = int(measured["seeds"].max()), int(measured["images"].max())
    factor, name = MEASURES[measure]
    for number, (axes, each) in enumerate(zip(panels, bits, strict=True)):
        rows = table[table["bits"] == each].set_index("recipe")
        values, deviations = factor * rows[measure], factor * rows[f"{measure}_std"]
        axes.set_title(f"{each.upper()}, ours")
        whiskers = f"n = {images:,}\nwhiskers: ± 1 σ of {seeds} seeds"
        if values.max() - values.min() < CLOSE and FULL_PRECISION in values:
            _differences(axes, values - values[FULL_PRECISION], deviations, series(number), "not run")
            axes.set_xlabel(f"{name} less FP32's, {whiskers}")
        else:
            _bars(axes, values, deviations, series(number), "not run")
            _label(axes, f"{name}, {whiskers}")
    published = table.drop_duplicates("recipe").set_index("recipe")["published_top1"]
    _bars(theirs, published, published * np.nan, PUBLISHED, "not in the study")
    theirs.set_title("W8A8, published")
    _label(theirs, "top-1 (%), n = 10,000\nViT-Base, ImageNet; the study's")
    panels[0].set_yticks(range(len(recipes)), [row_name(name) for name in recipes])
    panels[0].set_ylim(len(recipes) - 0.4, -0.6)
    return figure


def _label(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, x=50 / RIGHT)  # below the middle of the scale


def _differences(axes: Axes, changes: pd.Series, deviations: pd.Series, look: Series, missing: str) -> None:
    """A point a recipe, its number at the right edge; full precision is 0, the line."""
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, (recipe, change) in enumerate(changes.items()):
        if not np.isfinite(change):
            axes.text(
                0.02, y, missing, transform=axes.get_yaxis_transform(), va="center", color=GREY, fontsize=7.5
            )
            continue
        full = recipe == FULL_PRECISION
        colour, error = LIGHT_GREY if full else look.colour, np.nan_to_num(float(deviations[recipe]))
        axes.errorbar(
            change, y, xerr=error, color=colour, marker=look.marker, markersize=5, linewidth=1.2, capsize=2
        )
        text = "0.00" if full else signed(change, 2)
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5)
    axes.margins(x=0.1)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _bars(axes: Axes, values: pd.Series, deviations: pd.Series, look: Series, missing: str) -> None:
    for y, (recipe, value) in enumerate(values.items()):
        if not np.isfinite(value):
            axes.text(1.5, y, missing, va="center", color=GREY, fontsize=7.5)
            continue
        full, deviation = recipe == FULL_PRECISION, float(deviations[recipe])
        bar = axes.barh(y, value, height=0.68, color=LIGHT_GREY if full else look.colour, edgecolor="white")[
            0
        ]
        bar.set_linewidth(0)
        bar.set_hatch("" if full else look.hatch)
        end = value
        if np.isfinite(deviation):
            axes.errorbar(value, y, xerr=deviation, color="black", linewidth=1, capsize=2)
            end += deviation
        axes.text(end + 2, y, f"{value:.2f}", va="center", fontsize=7.5)
    axes.set_xlim(0, RIGHT)
    axes.set_xticks(range(0, 101, 25))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
