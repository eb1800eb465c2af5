"""Errors of the layers' inputs with per-tensor and with per-channel scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ptq2themoon.plots.by_layer import WIDTH, entitle, layers_of
from ptq2themoon.plots.style import Series, series, styled
from ptq2themoon.study.names import CLASS, KINDS, QUANTIZERS

MEASURES = {
    "mse": "mean squared error\n(activation unit, squared)",
    "mae_sum": "mean absolute error, summed\nover channels (activation unit)",
}
ERROR_COLUMNS = ("layer", "block", "tokens", "quantizer", *MEASURES, "images", "class_token")
AVERAGE_COLUMNS = ("layer", "tokens", "quantizer", "blocks", *MEASURES, "images", "class_token")
PUBLISHED_COLUMNS = (
    *("tokens", "layer", "block"),
    *(f"{name}_{quantizer.replace(' ', '_')}" for name in ("mse", "mae") for quantizer in QUANTIZERS),
)
HISTOGRAM_COLUMNS = ("layer", "block", "quantizer", "low", "high", "channels", "median")
COLOURS = (1, 0)  # of the quantizers, in the palette


@styled
def errors_by_block(errors: pd.DataFrame, published: str | None = None) -> Figure:
    """One column per layer, one row per measure: error by block, one line per quantizer and kind of token.

    Args:
        published: whose errors these are, where they are not measured here.
    """
    layers = layers_of(errors)
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(layers), squeeze=False, sharex=True, sharey="row")
    for (measure, title), row in zip(MEASURES.items(), grid, strict=True):
        row[0].set_ylabel(f"{title}\nlower is better", multialignment="center")
        for layer, axes in zip(layers, row, strict=True):
            of_layer = errors[errors["layer"] == layer]
            for quantizer, kind in _combinations(errors):
                rows = of_layer[(of_layer["quantizer"] == quantizer) & (of_layer["tokens"] == kind)]
                rows = rows[rows[measure] > 0]  # a log axis has no place for 0
                axes.plot(
                    rows["block"], rows[measure], label=_name(quantizer, kind), **_line(quantizer, kind)
                )
            axes.set_yscale("log")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"input of {layer}")
    for axes in grid[-1]:
        axes.set_xlabel("block")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=3)
    title = "Error of the quantized inputs of the layers"
    if published:
        figure.suptitle(f"{title}\n{published}", x=0.01, ha="left", fontsize=9.5)
    else:
        entitle(figure, title, errors["images"].iloc[0], errors["class_token"].iloc[0])
    return figure


def as_printed(published: pd.DataFrame) -> pd.DataFrame:
    """The study's printed errors in the form of errors.csv: one row per layer, block, tokens and quantizer.

    Args:
        published: resources/study/errors_by_block.csv.
    """
    keys = ["layer", "block", "tokens"]
    parts = [
        published[keys].assign(
            quantizer=quantizer,
            mse=published[f"mse_{quantizer.replace(' ', '_')}"],
            mae_sum=published[f"mae_{quantizer.replace(' ', '_')}"],
        )
        for quantizer in QUANTIZERS
    ]
    return pd.concat(parts).sort_values(keys, kind="stable", ignore_index=True)


@styled
def errors_average(averages: pd.DataFrame) -> Figure:
    """One panel per measure: bars of the mean over blocks, by layer, quantizer and kind of token."""
    layers, combinations = layers_of(averages), _combinations(averages)
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    width = 0.86 / len(combinations)
    for axes, (measure, title) in zip(figure.subplots(len(MEASURES), 1), MEASURES.items(), strict=True):
        unit = 10.0 ** np.floor(np.log10(max(averages[measure].max(), 1e-12)))
        for place, (quantizer, kind) in enumerate(combinations):
            rows = averages[(averages["quantizer"] == quantizer) & (averages["tokens"] == kind)]
            heights = rows.set_index("layer")[measure].reindex(layers) / unit
            x = np.arange(len(layers)) + (place - (len(combinations) - 1) / 2) * width
            bars = axes.bar(x, heights, 0.94 * width, label=_name(quantizer, kind), **_bar(quantizer, kind))
            axes.bar_label(
                bars, [f"{height:#.3g}".rstrip(".") for height in heights], fontsize=7.5, padding=2
            )
        axes.set_xticks(range(len(layers)), [f"input of {layer}" for layer in layers])
        axes.set_ylabel(f"{title}{_times(unit)}\nlower is better", multialignment="center")
        axes.margins(x=0.02, y=0.1)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=2.2)
    first = averages.iloc[0]
    title = f"Error of the quantized inputs of the layers, mean over {averages['blocks'].max()} blocks"
    entitle(figure, title, first["images"], first["class_token"])
    return figure


@styled
def error_histograms(histograms: pd.DataFrame) -> Figure:
    """Channels by percentage error, both quantizers in a panel: one row per block, one column per layer."""
    layers, blocks = layers_of(histograms), sorted(histograms["block"].unique())
    figure = Figure(figsize=(WIDTH, 1.4 + 0.74 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), len(layers), squeeze=False, sharex=True, sharey="col")
    for block, row in zip(blocks, grid, strict=True):
        row[0].set_ylabel(f"block {block}", rotation="horizontal", ha="right", va="center")
        for layer, axes in zip(layers, row, strict=True):
            place = histograms[(histograms["layer"] == layer) & (histograms["block"] == block)]
            if place.empty:
                axes.set_visible(False)
                continue
            _draw_histograms(axes, place)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"input of {layer}")
        axes.set_ylim(0, 1.45 * histograms.loc[histograms["layer"] == layer, "channels"].max())
    figure.supxlabel(
        "percentage error of a channel, 100 · sum |quantized \N{MINUS SIGN} float| / sum |float| "
        "over images and tokens; lower is better",
        fontsize=9,
    )
    figure.supylabel("channels", fontsize=9)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2)
    figure.suptitle("Channels by percentage error; numbers are medians", x=0.01, ha="left", fontsize=9.5)
    return figure


def _draw_histograms(axes: Axes, place: pd.DataFrame) -> None:
    """Per tensor filled, per channel as an outline; a triangle and a number at the median of each."""
    said = []
    for quantizer in QUANTIZERS:
        rows, look, filled = (
            place[place["quantizer"] == quantizer],
            _look(quantizer),
            quantizer == QUANTIZERS[0],
        )
        edges = _drawn_edges(rows["low"].to_numpy(dtype=float))
        style: dict[str, Any] = (
            {"fill": True, "linewidth": 0, "alpha": 0.55} if filled else {"linewidth": 1.3}
        )
        axes.stairs(rows["channels"], edges, color=look.colour, label=quantizer, **style)
        median = float(rows["median"].iloc[0])
        drawn = float(np.clip(median, edges[0], edges[-1]))
        marker: dict[str, Any] = {
            "transform": axes.get_xaxis_transform(),
            "clip_on": False,
            "linestyle": "none",
        }
        axes.plot([drawn], [0.0], color=look.colour, marker=look.marker, markersize=4, zorder=5, **marker)
        said.append(f"{median:.2f}")
    axes.text(0.99, 0.96, " → ".join(said) + " %", transform=axes.transAxes, ha="right", va="top", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks((0.1, 1, 10, edges[-2]), ["0.1", "1", "10", "99.5"])
    axes.minorticks_off()


def _drawn_edges(low: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the bins on a log axis; the outermost are as wide as the others, whatever they hold."""
    edges = np.append(low, 100.0)
    step = edges[2] / edges[1]
    edges[0], edges[-1] = edges[1] / step, edges[-2] * step
    return edges


def _combinations(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Quantizers and the kinds of token that a table has."""
    present = set(table["tokens"])
    return [(quantizer, kind) for quantizer in QUANTIZERS for kind in KINDS if kind in present]


def _times(unit: float) -> str:
    """The power of ten that an axis counts in."""
    return "" if unit == 1 else f" ($10^{{{np.log10(unit):.0f}}}$)"


def _name(quantizer: str, kind: str) -> str:
    return f"{quantizer}, {'class token' if kind == CLASS else 'patch tokens'}"


def _look(quantizer: str) -> Series:
    return series(COLOURS[QUANTIZERS.index(quantizer)])


def _line(quantizer: str, kind: str) -> dict[str, Any]:
    """Colour and marker tell the quantizer, line style and filling the kind of token."""
    look, is_class = _look(quantizer), kind == CLASS
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linewidth": 1.2, "markersize": 4}
    filled = look.colour if is_class else "white"
    return {**style, "linestyle": "-" if is_class else "--", "markerfacecolor": filled}


def _bar(quantizer: str, kind: str) -> dict[str, Any]:
    """Colour tells the quantizer, hatching the kind of token."""
    colour = _look(quantizer).colour
    if kind == CLASS:
        return {"color": colour, "edgecolor": colour}
    return {"color": "white", "edgecolor": colour, "hatch": _look(quantizer).hatch}
