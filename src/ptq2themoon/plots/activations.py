"""Ranges of the layers' inputs by channel: of one block closely, and of all blocks on one page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq2themoon.plots.by_layer import WIDTH, entitle, layers_of
from ptq2themoon.plots.style import GREY, series, styled
from ptq2themoon.study.names import ALL, CLASS, PATCH, block_index

Floats = npt.NDArray[np.float64]

CHANNEL_COLUMNS = ("layer", "block", "channel", "minimum", "maximum", "patch_minimum", "patch_maximum")
LARGEST_COLUMNS = ("layer", "block", "tokens", "channel", "range", "images", "class_token")
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
    """One row per block, one column per layer: minimum to maximum of each channel, all tokens.

    Panels of a layer share the y axis, so that blocks compare; each names its largest range.
    """
    layers, blocks = layers_of(channels), sorted(channels["block"].unique())
    figure = Figure(figsize=(WIDTH, 1.1 + 0.72 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), len(layers), squeeze=False, sharex="col", sharey="col")
    of_all = largest[largest["tokens"] == ALL].set_index(["layer", "block"])
    for block, row in zip(blocks, grid, strict=True):
        row[0].set_ylabel(f"block {block}", rotation="horizontal", ha="right", va="center")
        for layer, axes in zip(layers, row, strict=True):
            found = channels[(channels["layer"] == layer) & (channels["block"] == block)]
            if found.empty:
                axes.set_visible(False)
                continue
            low, high = found["minimum"].to_numpy(), found["maximum"].to_numpy()
            _band(axes, low, high, series(0).colour)
            top = of_all.loc[(layer, block)]
            _corner(axes, f"largest range {top['range']:.3g} (channel {top['channel']:.0f})")
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"input of {layer}")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.35 * (high - low))  # room for the text
    figure.supxlabel("channel", fontsize=9)
    first = largest.iloc[0]
    title = (
        "Inputs of the layers in floating point and their own unit: each channel from minimum to maximum; "
        "one y axis a layer"
    )
    entitle(figure, title, first["images"], first["class_token"])
    return figure


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


def _corner(axes: Axes, text: str) -> None:
    axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=7)
