"""Accuracy of one model against bits: one line per recipe, one row of panels per protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.plots.style import FULL_PRECISION, GREY, Series, series, styled
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import UserError, nearest

COLUMNS = (
    "model", "protocol", "recipe", "bits", "seeds", "images", "top1", "top1_std", "agreement",
    "agreement_std", "logits_sqnr_db", "logits_sqnr_db_std",
)  # fmt: skip
ENLARGED = 5.0  # points below floating point that the enlarged panel shows
SPREAD = 0.5  # of a step: over what the recipes stand beside each other


class Measure(NamedTuple):
    """What accuracy is: the first that a model has.

    Attributes:
        label: of its axis.
        whole: what floating point has; None where there is no such value.
    """

    column: str
    label: str
    whole: float | None


def measure_of(rows: pd.DataFrame) -> Measure:
    """Of the rows of one model, floating point's among them."""
    full, quantized = rows["recipe"] == FULL_PRECISION, rows[rows["recipe"] != FULL_PRECISION]
    if quantized["top1"].notna().any():
        return Measure("top1", "top-1 (%)", float(rows.loc[full, "top1"].iloc[0]))
    if quantized["agreement"].notna().any():
        return Measure("agreement", "agreement with FP32 (%)", 100.0)
    return Measure("logits_sqnr_db", "output SQNR (dB)", None)


def rows_of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of a model.

    Raises:
        UserError: a model that the table does not have.
    """
    rows = table[table["model"] == model]
    if rows.empty:
        raise UserError(f"--model {model}: not in the leaderboard; {nearest(model, table['model'].unique())}")
    return rows.reset_index(drop=True)


def looks_of(rows: pd.DataFrame) -> dict[str, Series]:
    """How each recipe looks, in all figures of a model."""
    names = [name for name in dict.fromkeys(rows["recipe"]) if name != FULL_PRECISION]
    return {name: series(index) for index, name in enumerate(names)}


def in_order(bits: Sequence[str]) -> tuple[list[str], list[str]]:
    """Equal bits of weights and activations, the widest first; apart the others, which no line joins."""
    widths = {each: parse_bits(each) for each in bits}
    ordered = sorted(widths, key=lambda each: (-sum(widths[each]), -widths[each][1]))
    even = [each for each in ordered if widths[each][0] == widths[each][1]]
    return even, [each for each in ordered if each not in even]


@styled
def accuracy_by_bits(table: pd.DataFrame, model: str) -> Figure:
    """For each protocol accuracy at all bits; beside it the change against FP32, enlarged.

    Whiskers are one standard deviation over seeds.
    """
    rows = rows_of(table, model)
    places = places_of(list(dict.fromkeys(rows.loc[rows["recipe"] != FULL_PRECISION, "bits"])))
    return by_protocol(rows, f"Accuracy of {model} by bits", lambda panel: _draw(panel, places))


class Panel(NamedTuple):
    """What is drawn into axes.

    Attributes:
        rows: of one protocol.
        measure: what stands on the axis of accuracy.
        looks: of the recipes.
        base: what is taken off accuracy.
    """

    axes: Axes
    rows: pd.DataFrame
    measure: Measure
    looks: Mapping[str, Series]
    base: float

    @property
    def recipes(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(self.rows["recipe"]))

    def points(self, x: Sequence[float], rows: pd.DataFrame, **how: Any) -> None:
        """Points of one recipe with their whiskers."""
        name = rows["recipe"].iloc[0]
        spread = np.nan_to_num(rows[f"{self.measure.column}_std"].to_numpy(dtype=float))
        values = rows[self.measure.column].to_numpy(dtype=float) - self.base
        self.axes.errorbar(
            x, values, yerr=spread, linewidth=1, elinewidth=0.8, capsize=1.5, markersize=4,
            color=self.looks[name].colour, marker=self.looks[name].marker, **how,
        )  # fmt: skip

    def finish(self, enlarged: bool) -> None:
        """The axis of accuracy, with floating point."""
        axes, measure = self.axes, self.measure
        if measure.whole is not None:
            axes.axhline(measure.whole - self.base, color=GREY, linewidth=0.9, linestyle="--")
            axes.annotate(
                "FP32", (0, measure.whole - self.base), xycoords=("axes fraction", "data"), xytext=(3, 2),
                textcoords="offset points", fontsize=7.5, color=GREY,
            )  # fmt: skip
        if enlarged:
            ends = self.rows[measure.column] + self.rows[f"{measure.column}_std"].fillna(0) - self.base
            axes.set_ylim(-ENLARGED, max(0.0, float(ends.max())) + 0.4)
            axes.set_ylabel("change against FP32 (points)")
        else:
            axes.set_ylabel(measure.label)
            if measure.whole is not None:
                axes.set_ylim(0, 104)
        axes.grid(axis="y")


def by_protocol(rows: pd.DataFrame, text: str, draw: Callable[[Panel], None]) -> Figure:
    """A row of panels for each protocol: accuracy, and its change against FP32, enlarged.

    Args:
        rows: of one model.
        text: the title.
        draw: points and horizontal axis of a panel.
    """
    measure, looks = measure_of(rows), looks_of(rows)
    quantized = rows[rows["recipe"] != FULL_PRECISION]
    protocols = list(dict.fromkeys(quantized["protocol"]))
    columns = 1 if measure.whole is None else 2
    heights = [max(2.7, 0.45 + 0.19 * recipes_of(quantized, each)) for each in protocols]
    figure = Figure(figsize=(4.0 * columns + 1.9, sum(heights) + 0.75), layout="constrained")
    figure.suptitle(title(text, quantized), x=0.01, ha="left", fontsize=10.5)
    grid = figure.subplots(len(protocols), columns, squeeze=False, height_ratios=heights)
    for panels, protocol in zip(grid, protocols, strict=True):
        own = quantized[quantized["protocol"] == protocol]
        for axes, enlarged in zip(panels, (False, True), strict=False):
            panel = Panel(axes, own, measure, looks, (measure.whole or 0.0) if enlarged else 0.0)
            draw(panel)
            panel.finish(enlarged)
            what = (
                f"enlarged: at most {ENLARGED:.0f} points below FP32" if enlarged else f"protocol {protocol}"
            )
            axes.set_title(what)
        legend(panels[-1], looks, panel.recipes)
    return figure


def recipes_of(rows: pd.DataFrame, protocol: str) -> int:
    """How many recipes a protocol has."""
    return int(rows.loc[rows["protocol"] == protocol, "recipe"].nunique())


def title(text: str, rows: pd.DataFrame) -> str:
    """With the number of images and seeds."""
    first = rows.iloc[0]
    return f"{text}\n{int(first['images']):,} images; mean ± 1 σ of {int(first['seeds'])} calibration draws"


def places_of(bits: Sequence[str]) -> dict[str, float]:
    """Where each bits stand: equal ones in steps of one, the others after a gap."""
    even, uneven = in_order(bits)
    found = {each: float(index) for index, each in enumerate(even)}
    return found | {each: len(even) + 0.4 * bool(even) + index for index, each in enumerate(uneven)}


def legend(
    axes: Axes, looks: Mapping[str, Series], names: Sequence[str], line: Literal["-", "none"] = "-"
) -> None:
    """Names of the recipes, right of the axes."""
    looked = [(name, looks[name]) for name in names]
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=5, label=name, linestyle=line)
        for name, look in looked
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0, fontsize=8)


def shift_of(index: int, count: int) -> float:
    """Where a recipe stands beside the others, so that none hides another: in the part `SPREAD` of a step."""
    return SPREAD * ((index + 0.5) / count - 0.5)


def _draw(panel: Panel, places: Mapping[str, float]) -> None:
    even, uneven = in_order(list(places))
    for index, name in enumerate(panel.recipes):
        own = panel.rows[panel.rows["recipe"] == name].set_index("bits")
        for part, line in ((even, "-"), (uneven, "none")):
            there = [bits for bits in part if bits in own.index]
            if there:
                x = [places[bits] + shift_of(index, len(panel.recipes)) for bits in there]
                panel.points(x, own.loc[there], linestyle=line)
    axes = panel.axes
    if even and uneven:
        axes.axvline(len(even) - 0.3, color="#BBBBBB", linewidth=0.7)
    axes.set_xticks(list(places.values()), [bits.upper() for bits in places])
    axes.set_xlim(-0.6, max(places.values()) + 0.6)
