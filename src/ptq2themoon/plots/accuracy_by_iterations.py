"""Accuracy of one model against the iterations that a method trains for: one line per recipe."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ptq2themoon.plots.style import GREY, series, styled

PANELS = {"top1": "top-1 (%)", "agreement": "agreement with FP32 (%)", "logits_sqnr_db": "output SQNR (dB)"}


@styled
def accuracy_by_iterations(curves: pd.DataFrame, model: str) -> Figure:
    """A panel for each measure that the model has; whiskers of one standard deviation over seeds.

    Args:
        curves: rows of all recipes and seeds.
    """
    panels = [(name, label) for name, label in PANELS.items() if curves[name].notna().any()]
    figure = Figure(figsize=(2.9 * len(panels) + 1.2, 2.9), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    first, seeds = curves.iloc[0], curves["seed"].nunique()
    title = (
        f"Accuracy of {model} by iterations of each unit\n{first['bits'].upper()}, "
        f"{first['calibration_images']} images to train on, {first['images']} to evaluate"
        + (f", mean of {seeds} seeds" if seeds > 1 else "")
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    steps = sorted(curves["iterations"].unique())
    for axes, (name, label) in zip(grid, panels, strict=True):
        for index, (recipe, rows) in enumerate(curves.groupby("recipe", sort=False)):
            points = rows.groupby("iterations")[name].agg(["mean", "std"]).fillna({"std": 0.0})
            look = series(index)
            axes.errorbar(
                points.index, points["mean"], yerr=points["std"] if seeds > 1 else None, label=str(recipe),
                color=look.colour, marker=look.marker, markersize=4.5, linewidth=1.2, capsize=2,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=max(1, min((s for s in steps if s), default=1)))
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(label)
        axes.grid()
        if name == "top1":
            axes.axhline(first["fp32_top1"], color=GREY, linewidth=0.9, linestyle="--")
    dashed = "; dashed: FP32" if panels[0][0] == "top1" else ""
    figure.supxlabel(f"iterations, logarithmic from the first above 0 on{dashed}", fontsize=9)
    grid[-1].legend(loc="lower right")
    return figure
