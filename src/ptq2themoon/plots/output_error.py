"""The error of each recipe's output, for a model without accuracy: features, or images without labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.style import FULL_PRECISION, GREY, Series, styled
from ptq2themoon.plots.summary_rows import count, labels, looks, name_rows, rows_of
from ptq2themoon.vocabulary.errors import UserError


@styled
def output_error(summary: pd.DataFrame, model: str) -> Figure:
    """Output SQNR as one bar per row of `summary` for `model`; beside it the cosine with FP32's output."""
    rows = rows_of(summary, model)
    rows = rows[rows["recipe"] != FULL_PRECISION].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"--model {model}: the summary holds no recipe to compare with fp32")
    names = labels(rows)
    width = 7.4 + 0.065 * max(map(len, names))
    figure = Figure(figsize=(width, 1.75 + 0.42 * len(rows)), layout="constrained")
    title = (
        f"Output of {model} against FP32's\nno top-1: the model has no classifier, or the images no labels"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    bars, cosines = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _draw_sqnr(bars, rows, looks(rows))
    _draw_cosine(cosines, rows, looks(rows))
    name_rows(bars, cosines, names)
    return figure


def _numbers(rows: pd.DataFrame, column: str) -> Sequence[float]:
    """NaN where the table has none."""
    return [float(value) for value in pd.to_numeric(rows[column])]


def _draw_sqnr(axes: Axes, rows: pd.DataFrame, series: Sequence[Series]) -> None:
    """Bars from 0; a recipe whose output is FP32's own to the bit has no SQNR."""
    values = _numbers(rows, "logits_sqnr_db")
    known = [value for value in values if np.isfinite(value)]
    low, high = min([0.0, *known]), max([1.0, *known])
    for y, (value, look) in enumerate(zip(values, series, strict=True)):
        if not np.isfinite(value):
            axes.text((high - low) * 0.015, y, "no error", va="center")
            continue
        bar = axes.barh(y, value, height=0.66, color=look.colour, edgecolor="white", linewidth=0)[0]
        bar.set_hatch(look.hatch)
        text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        axes.text(max(value, 0.0) + (high - low) * 0.015, y, text, va="center")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(low * 1.05, high + (high - low) * 0.17)
    axes.set_xlabel(f"output SQNR (dB), n = {count(rows)} images\nhigher is better")


def _draw_cosine(axes: Axes, rows: pd.DataFrame, series: Sequence[Series]) -> None:
    values = _numbers(rows, "output_cosine")
    for y, (value, look) in enumerate(zip(values, series, strict=True)):
        axes.plot(value, y, marker=look.marker, color=look.colour, markersize=6.5, clip_on=False)
        text = f"{value:.4f}".replace("-", "\N{MINUS SIGN}")
        axes.text(1.19, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center")
    low = min([value for value in values if np.isfinite(value)], default=0.0)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlim(low - 0.08 * max(1 - low, 1e-4), 1)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(
        "cosine similarity of the output with FP32's,\nmean over images; the axis ends at 1 (equal)"
    )
