"""Accuracy of one model against the seconds of calibration: a panel for each bits, one row per protocol."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ptq2themoon.plots.accuracy_by_bits import Measure, in_order, legend, looks_of, measure_of, rows_of, title
from ptq2themoon.plots.style import FULL_PRECISION, GREY, Series, styled

COSTS = ("model", "recipe", "bits", "seed", "seconds", "memory_mb")
SHORTEST = 0.1  # of the mean: no whisker goes below, for a logarithmic axis has no 0


@styled
def accuracy_by_cost(table: pd.DataFrame, costs: pd.DataFrame, model: str) -> Figure:
    """Each recipe at its mean seconds, with whiskers of one standard deviation over seeds both ways.

    Args:
        table: leaderboard.csv.
        costs: cost.csv of all rows.
        model: whose rows are drawn.
    """
    rows = rows_of(table, model)
    measure, looks = measure_of(rows), looks_of(rows)
    quantized = rows[rows["recipe"] != FULL_PRECISION].merge(spread_of(costs), on=["model", "recipe", "bits"])
    protocols = list(dict.fromkeys(quantized["protocol"]))
    bits = [each for part in in_order(list(dict.fromkeys(quantized["bits"]))) for each in part]
    heights = [
        max(2.2, 0.3 + 0.19 * quantized.loc[quantized["protocol"] == p, "recipe"].nunique())
        for p in protocols
    ]
    figure = Figure(figsize=(1.95 * len(bits) + 2.1, sum(heights) + 0.75), layout="constrained")
    figure.suptitle(
        title(f"Accuracy of {model} by seconds of calibration", quantized), x=0.01, ha="left", fontsize=10.5
    )
    grid = figure.subplots(len(protocols), len(bits), squeeze=False, height_ratios=heights, sharex=True)
    for panels, protocol in zip(grid, protocols, strict=True):
        for axes, each in zip(panels, bits, strict=True):
            own = quantized[(quantized["protocol"] == protocol) & (quantized["bits"] == each)]
            _draw(axes, own, measure, looks)
            axes.set_title(each.upper())
        panels[0].set_ylabel(f"protocol {protocol}\n{measure.label}")
        names = list(dict.fromkeys(quantized.loc[quantized["protocol"] == protocol, "recipe"]))
        legend(panels[-1], looks, names, line="none")
    _seconds(grid[-1], quantized)
    floating = "" if measure.whole is None else "; dashed: FP32"
    figure.supxlabel(f"seconds of one calibration, logarithmic{floating}", fontsize=9)
    return figure


def spread_of(costs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the seconds of each model, recipe and bits."""
    groups = costs.groupby(["model", "recipe", "bits"], sort=False)["seconds"]
    return groups.agg(seconds="mean", seconds_std="std").reset_index()


def _draw(axes: Axes, rows: pd.DataFrame, measure: Measure, looks: dict[str, Series]) -> None:
    for row in rows.to_dict("records"):
        look, value = looks[row["recipe"]], row[measure.column]
        errors = np.nan_to_num([row["seconds_std"], row[f"{measure.column}_std"]])
        left = min(errors[0], (1 - SHORTEST) * row["seconds"])
        axes.errorbar(
            row["seconds"], value, xerr=[[left], [errors[0]]], yerr=errors[1], linestyle="none",
            elinewidth=0.8, capsize=1.5, color=look.colour, marker=look.marker, markersize=5,
        )  # fmt: skip
    if measure.whole is not None:
        axes.axhline(measure.whole, color=GREY, linewidth=0.9, linestyle="--")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.margins(y=0.12)
    axes.grid()


def _seconds(panels: np.ndarray, rows: pd.DataFrame) -> None:
    """A logarithmic axis with a few plain numbers, shared by all panels, as wide as the whiskers."""
    seconds, spread = rows["seconds"], rows["seconds_std"].fillna(0)
    axes = panels[0]
    axes.set_xscale("log")
    low = float((seconds - spread).combine(SHORTEST * seconds, max).min()) / 1.25
    high = float((seconds + spread).max()) * 1.25
    axes.set_xlim(low, high)
    every = [step * 10.0**power for power in range(-2, 6) for step in (1, 2, 5)]
    ticks = [tick for tick in every if low <= tick <= high]
    while len(ticks) > 4:
        ticks = ticks[::2]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
