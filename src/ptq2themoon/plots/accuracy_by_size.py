"""Accuracy of one model against the size of its parameters: one line per recipe, panels for each protocol."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ptq2themoon.plots.accuracy_by_bits import COLUMNS, Panel, by_protocol, in_order, rows_of, shift_of
from ptq2themoon.plots.style import styled

SIZED = (*COLUMNS, "weight_bits")
FLOATING = 32  # bits of a parameter in floating point


@styled
def accuracy_by_size(table: pd.DataFrame, model: str, parameters: int) -> Figure:
    """For each protocol accuracy against size; beside it the change against FP32, enlarged.

    A recipe's points with equal bits of weights and activations are joined; those of other bits are
    hollow. Recipes of one size stand beside each other. Whiskers are one standard deviation over seeds.

    Args:
        table: leaderboard.csv.
        model: whose rows are drawn.
        parameters: of the model; all are counted at the mean bits that a row's weights have.
    """
    rows = rows_of(table, model)
    rows = rows.assign(size_mb=megabytes(rows["weight_bits"], parameters))
    figure = by_protocol(rows, f"Accuracy of {model} by size", _draw)
    whole = float(megabytes(pd.Series([float(FLOATING)]), parameters).iloc[0])
    figure.supxlabel(
        f"MB of all parameters at the mean bits of the row's weights; FP32: {whole:.1f} MB\n"
        "hollow: other bits of activations than of weights",
        fontsize=9,
    )
    return figure


def megabytes(bits: pd.Series, parameters: int) -> pd.Series:
    """Of so many parameters with these bits, in millions of bytes."""
    return bits * parameters / 8e6


def _draw(panel: Panel) -> None:
    sizes = panel.rows["size_mb"]
    widths = panel.rows["weight_bits"]
    step = float((sizes / widths).mean())  # MB of a bit: how far apart neighbours are
    even, uneven = in_order(list(dict.fromkeys(panel.rows["bits"])))
    for index, name in enumerate(panel.recipes):
        own = panel.rows[panel.rows["recipe"] == name]
        for part, how in ((even, {"linestyle": "-"}), (uneven, {"linestyle": "none", "mfc": "white"})):
            there = own[own["bits"].isin(part)].sort_values("size_mb")
            if len(there):
                panel.points(there["size_mb"] + step * shift_of(index, len(panel.recipes)), there, **how)
    panel.axes.set_xlim(float(sizes.min()) - 0.6 * step, float(sizes.max()) + 0.6 * step)
