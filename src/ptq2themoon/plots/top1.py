"""Top-1 of full precision and of each recipe, and what each recipe costs."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.style import GREY, Series, styled
from ptq2themoon.plots.summary_rows import count, labels, looks, name_rows, rows_of
from ptq2themoon.vocabulary.errors import UserError

LARGEST_DROP = 10.0  # percentage points that the enlarged panel shows
NORMAL_QUANTILE_95 = 1.959963984540054


def wilson_interval(percent: float, images: int) -> tuple[float, float]:
    """95 % interval of a share of `images`, in percent (Wilson, 1927)."""
    share, z2 = percent / 100, NORMAL_QUANTILE_95**2
    centre = share + z2 / (2 * images)
    half = NORMAL_QUANTILE_95 * sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    low, high = ((centre + sign * half) / (1 + z2 / images) * 100 for sign in (-1, 1))
    return max(low, 0.0), min(high, 100.0)


@styled
def top1(summary: pd.DataFrame, model: str) -> Figure:
    """One bar per row of `summary` for `model`, from zero; beside it the difference from FP32, enlarged.

    Whiskers are 95 % intervals: of the bars Wilson's, of the differences for images that both share.
    """
    rows = _rows(summary, model)
    names, series = labels(rows), looks(rows)
    width = 7.4 + 0.065 * max(map(len, names))
    figure = Figure(figsize=(width, 1.5 + 0.42 * len(rows)), layout="constrained")
    figure.suptitle(f"Top-1 accuracy of {model}", x=0.01, ha="left", fontsize=10.5)
    bars, differences = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _draw_bars(bars, rows, series)
    _draw_differences(differences, rows, series)
    name_rows(bars, differences, names)
    return figure


def has_accuracy(summary: pd.DataFrame, model: str) -> bool:
    """Whether the summary holds any top-1 of `model`; features and images without labels have none."""
    return bool(rows_of(summary, model)["top1"].notna().any())


def _rows(summary: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of `model` with possible accuracies."""
    rows = rows_of(summary, model)
    for row in rows.itertuples():
        if not (0 <= row.top1 <= 100 and row.images > 0):
            raise UserError(
                f"summary, model {model}, recipe {row.recipe}: top1 {row.top1} of {row.images} images; "
                "expected percent, and at least one image"
            )
    return rows


def _whiskers(top1: float, images: int) -> list[list[float]]:
    low, high = wilson_interval(top1, images)
    return [[max(top1 - low, 0.0)], [max(high - top1, 0.0)]]


def _draw_bars(axes: Axes, rows: pd.DataFrame, series: list[Series]) -> None:
    for y, (row, look) in enumerate(zip(rows.itertuples(), series, strict=True)):
        bar = axes.barh(y, row.top1, height=0.66, color=look.colour, edgecolor="white", linewidth=0)[0]
        bar.set_hatch(look.hatch)
        errors = _whiskers(row.top1, row.images)
        axes.errorbar(row.top1, y, xerr=errors, color="black", linewidth=1, capsize=2.5)
        _, high = wilson_interval(row.top1, row.images)
        axes.text(high + 1.5, y, f"{row.top1:.2f}", va="center")
    axes.set_xlim(0, 116)
    axes.set_xticks(range(0, 101, 20))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.set_xlabel(f"top-1 (%), n = {count(rows)} images\nwhiskers: 95 % interval (Wilson)")


def paired_half_width(difference: float, agreement: float, images: int) -> float:
    """Half of a 95 % interval of a difference of top-1 on the same images, in points; an upper bound.

    Only where the class changed can one side be right and the other wrong. Were all images without agreement
    such, the difference d of n images would have the variance (1 - agreement - d²) / n (McNemar's, by Wald).

    Args:
        difference: in percentage points.
        agreement: percent of images with the same class on both sides.
    """
    changed = max(1 - agreement / 100, abs(difference) / 100)
    return 100 * NORMAL_QUANTILE_95 * sqrt(max(changed - (difference / 100) ** 2, 0.0) / images)


def _draw_differences(axes: Axes, rows: pd.DataFrame, series: list[Series]) -> None:
    """Top-1 less FP32's; what lies beyond `LARGEST_DROP` becomes a triangle at the edge."""
    full = rows.iloc[0]
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, (row, look) in enumerate(zip(rows.itertuples(), series, strict=True)):
        difference = row.top1 - full.top1
        style: dict[str, Any] = {"color": look.colour, "markersize": 5.5}
        if difference < -LARGEST_DROP:
            axes.plot(-LARGEST_DROP, y, marker="<", clip_on=False, **style)
        else:
            half = paired_half_width(difference, row.agreement, row.images) if y else None
            axes.errorbar(difference, y, xerr=half, capsize=2.5, linewidth=1.2, marker=look.marker, **style)
        text = f"{difference:+.2f}".replace("-", "\N{MINUS SIGN}") if y else "0.00"
        axes.text(1.12, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center")
    axes.margins(x=0.08)
    label = "difference from FP32 (percentage points), enlarged\nwhiskers: 95 % interval at most, same images"
    if (rows["top1"] - full.top1 < -LARGEST_DROP).any():
        axes.set_xlim(left=-LARGEST_DROP)
        label += f"\ntriangles: below \N{MINUS SIGN}{LARGEST_DROP:.0f}"
    axes.set_xlabel(label)
