"""Ranges of the layers' inputs by channel: of one block closely, and their spread over all blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ptq2themoon.plots.by_layer import WIDTH, entitle, layers_of
from ptq2themoon.plots.style import GREY, series, styled
from ptq2themoon.study.names import ALL, CLASS, PATCH, block_index

Floats = npt.NDArray[np.float64]

CHANNEL_COLUMNS = ("layer", "block", "channel", "minimum", "maximum", "patch_minimum", "patch_maximum")
LARGEST_COLUMNS = ("layer", "block", "tokens", "channel", "range", "images", "class_token")
BAND = "90 % of the channels"
CLASS_COLUMNS = ("class_minimum", "class_maximum")


def of_block(channels: pd.DataFrame, block: int) -> pd.DataFrame:
    """The rows of one block, from the end when negative; without empty columns."""
    index = block_index(block, int(channels["block"].max()) + 1, "study.block")
    rows = channels[channels["block"] == index]
    return rows.dropna(axis="columns", how="all")


@styled
def activations_block(rows: pd.DataFrame, largest: pd.DataFrame) -> Figure:
    """One row per layer; minimum and maximum, range, range of the patches, and values of the class token.

    Args:
        rows: of one block, by channel; without columns of the class token the last panels fall away.
        largest: whose note says what the class token is.
    """
    layers, panels = layers_of(rows), _panels(rows)
    figure = Figure(figsize=(WIDTH, 1.3 + 1.55 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(panels), squeeze=False, sharex="row")
    for layer, axes in zip(layers, grid, strict=True):
        of_layer = rows[rows["layer"] == layer]
        for panel, kind in zip(axes, panels, strict=True):
            _draw_panel(panel, of_layer, kind)
        axes[0].set_ylabel(f"input of {layer}", fontweight="bold")
        ranges = axes[1 : len(panels) - (CLASS in panels)]
        top = 1.05 * max(axes.get_ylim()[1] for axes in ranges)
        for panel in ranges:
            panel.set_ylim(0, top)
    for panel, title in zip(grid[0], panels.values(), strict=True):
        panel.set_title(title)
    figure.supxlabel("channel", fontsize=9)
    block = int(rows["block"].iloc[0])
    first = largest.iloc[0]
    title = f"Inputs of the layers of block {block} by channel, in floating point and their own unit"
    entitle(figure, title, first["images"], first["class_token"])
    return figure


@styled
def activations(channels: pd.DataFrame, largest: pd.DataFrame) -> Figure:
    """One panel per layer: by block, how far the ranges of the channels lie apart, on a log axis.

    The band holds all channels but a twentieth at either end, the line is the median, and the point the
    largest range, named where it stands out most: what one scale for the tensor must reach, against what
    most channels need.
    """
    layers = layers_of(channels)
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for layer, axes in zip(layers, panels, strict=True):
        found = channels[channels["layer"] == layer]
        ranges = (found["maximum"] - found["minimum"]).groupby(found["block"])
        of_all = largest[(largest["tokens"] == ALL) & (largest["layer"] == layer)].set_index("block")
        _spread_of(axes, ranges, of_all)
        axes.set_title(f"input of {layer}")
        axes.set_xlabel("block")
    panels[0].set_ylabel("range of a channel (max \N{MINUS SIGN} min), its own unit")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    first = largest.iloc[0]
    title = "Ranges of the channels of the layers' inputs, in floating point, all tokens"
    entitle(figure, title, first["images"], first["class_token"])
    return figure


def _spread_of(axes: Axes, ranges: Any, largest: pd.DataFrame) -> None:
    """Quantiles of the channels' ranges by block, and the largest; its channel is named where farthest."""
    low, middle, high = (ranges.quantile(share) for share in (0.05, 0.5, 0.95))
    blocks = middle.index.to_numpy()
    axes.fill_between(blocks, low, high, color=series(0).colour, alpha=0.3, linewidth=0, label=BAND)
    axes.plot(blocks, middle, color=series(0).colour, linewidth=1.4, label="median channel")
    top = largest.loc[blocks]
    look = series(1)
    axes.plot(blocks, top["range"], look.marker, color=look.colour, markersize=4, label="largest range")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    farthest = (top["range"] / middle).idxmax()
    ratio = top.loc[farthest, "range"] / middle[farthest]
    text = f"channel {top.loc[farthest, 'channel']:.0f}\n{ratio:.1f} × median"
    place = int(3 * (farthest - blocks[0]) / (blocks[-1] - blocks[0] + 1))  # third of the panel
    side = ("left", "center", "right")[place]
    where: dict[str, Any] = {"ha": side, "va": "bottom", "xytext": (0, 9), "textcoords": "offset points"}
    axes.annotate(text, (farthest, top.loc[farthest, "range"]), fontsize=7, **where)
    axes.margins(x=0.08, y=0.16)


def _panels(rows: pd.DataFrame) -> dict[str, str]:
    """Title of each column by its kind; patches have their own where there are other tokens."""
    panels = {"ends": "minimum and maximum", ALL: "range (max \N{MINUS SIGN} min), all tokens"}
    same = (rows["minimum"] == rows["patch_minimum"]) & (rows["maximum"] == rows["patch_maximum"])
    if not same.all() or CLASS_COLUMNS[0] in rows:
        panels[PATCH] = "range, patch tokens only"
    if CLASS_COLUMNS[0] in rows:
        panels[CLASS] = "class token: min to max"
    return panels


def _draw_panel(axes: Axes, rows: pd.DataFrame, kind: str) -> None:
    prefix = "" if kind in ("ends", ALL) else f"{kind}_"
    low, high = (rows[f"{prefix}{end}"].to_numpy(dtype=float) for end in ("minimum", "maximum"))
    channels = rows["channel"].to_numpy()
    if kind == "ends":
        for index, (values, name) in enumerate(((high, "maximum"), (low, "minimum"))):
            look = series(index)
            style = ("-", (0, (3, 1)))[index]
            axes.plot(channels, values, color=look.colour, linestyle=style, linewidth=0.7, label=name)
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.margins(y=0.2)
        axes.legend(loc="upper right", ncols=2, fontsize=7, borderaxespad=0, handlelength=1.6)
    elif kind == CLASS:
        axes.axhline(0, color=GREY, linewidth=0.5)
        _band(axes, low, high, series(2).colour)
    else:
        _band(axes, np.zeros_like(low), high - low, series(0 if kind == ALL else 4).colour)
    axes.margins(x=0.01)


def _band(axes: Axes, low: Floats, high: Floats, colour: str) -> None:
    """A step a channel from low to high, no thinner than a line; an image in the SVG, for its size."""
    channels = np.arange(len(low))
    axes.fill_between(channels, low, high, step="mid", color=colour, linewidth=0.5, rasterized=True)
    axes.margins(x=0.01)
