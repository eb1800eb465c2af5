"""The error of every operator along the network, one series per recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.plots.network import MODES, Network, check_table
from ptq2themoon.plots.style import GREY, PALE, display_name, series, styled

Floats = npt.NDArray[np.float64]

# Inches.
WIDTH = (10.0, 18.0)  # least and most
MARGINS = 0.8
PITCH = 0.056  # from operator to operator, where the width allows
CHARACTER = 0.066  # of LABEL_SIZE, measured generously
LABEL_SIZE = 7.5
EDGE = "#C4C4C4"
ZERO_MARKER: Final = 7  # matplotlib's CARETDOWN


@styled
def errors_along_network(
    tables: Mapping[str, pd.DataFrame], images: Mapping[str, int] | None = None, worst: int = 3
) -> Figure:
    """NSR of every operator, one panel per mode, one series per recipe; names the `worst` of each.

    Args:
        tables: rows of operators.csv by recipe.
        images: number of images behind each mode, for the titles.
    """
    for name, table in tables.items():
        check_table(name, table)
    network = Network.of(tables)
    modes = [mode for mode in MODES if any((table["mode"] == mode).any() for table in tables.values())]
    width = float(np.clip(len(network.operators) * PITCH + MARGINS, *WIDTH))
    figure = Figure(figsize=(width, 1.2 + 1.95 * len(modes)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.05)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(len(modes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, mode in zip(panels, modes, strict=True):
        axes.set_title(_panel_title(mode, images or {}, tables), fontsize=9)
        axes.tick_params(axis="x", length=0)
        values = {name: _values(table, mode, network) for name, table in tables.items()}
        _draw_panel(axes, network, values)
        _name_worst(axes, network, list(values.values()), worst)
    figure.supylabel("NSR (noise power / signal power)\nlower is better", fontsize=9, multialignment="center")
    _label_blocks(panels[-1], network)
    _legend(figure, list(tables))
    return figure


def _panel_title(mode: str, images: Mapping[str, int], tables: Mapping[str, pd.DataFrame]) -> str:
    count = f" ({images[mode]:,} images)" if mode in images else ""
    rows = pd.concat([table[table["mode"] == mode] for table in tables.values()])
    lost = int((~np.isfinite(rows["nsr"])).sum())
    return MODES[mode] + count + (f"; {lost} values not finite, left out" if lost else "")


def _values(table: pd.DataFrame, mode: str, network: Network) -> Floats:
    """NSR by position on the axis; NaN where the table has none."""
    nsr = table[table["mode"] == mode].set_index("operator")["nsr"]
    return np.asarray(nsr.reindex(list(network.operators)), dtype=np.float64)


def _draw_panel(axes: Axes, network: Network, values: Mapping[str, Floats]) -> None:
    for block, first, last in network.spans():
        if block % 2 == 0:
            axes.axvspan(first - 0.5, last + 0.5, color=PALE, linewidth=0, zorder=0)
            continue
        for edge, beside in ((first - 0.5, first - 1), (last + 0.5, last + 1)):
            if network.is_outside(beside):  # white beside white
                axes.axvline(edge, color=EDGE, linewidth=0.7, zorder=0)
    axes.set_yscale("log")
    axes.set_xlim(-1, len(network.operators))
    axes.grid(axis="y")
    size = min(1.0, _pitch(axes, network) / PITCH)
    for index, (name, nsr) in enumerate(values.items()):
        look = series(index)
        # Later series are thinner, so that an equal one below still shows.
        thinness = index / max(len(values) - 1, 1)
        there = np.flatnonzero(np.isfinite(nsr))  # a recipe's line passes over what it does not quantize
        axes.plot(
            there,
            np.where(nsr[there] > 0, nsr[there], np.nan),
            color=look.colour,
            marker=look.marker,
            label=name,
            linewidth=(1.9 - 1.0 * thinness) * size,
            markersize=(4.8 - 1.8 * thinness) * size,
            markeredgewidth=0,
        )
    stacked = np.stack(list(values.values()))
    _set_limits(axes, stacked, _mark_zeros(axes, stacked))


def _pitch(axes: Axes, network: Network) -> float:
    """Inches from operator to operator."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float((figure.get_size_inches()[0] - MARGINS) / len(network.operators))


def _mark_zeros(axes: Axes, stacked: Floats) -> float:
    """Mark zeros, which a log axis has no place for, along the lower edge; return the height used.

    A grey triangle where all series are 0; else one in the colour of each series that is, one row per series.
    """
    everywhere = (stacked == 0).all(axis=0)
    rows = [(GREY, everywhere)]
    rows += [(series(index).colour, (nsr == 0) & ~everywhere) for index, nsr in enumerate(stacked)]
    height = 0.0
    for colour, marked in rows:
        if marked.any():
            height += 0.045
            positions = np.flatnonzero(marked)
            axes.plot(
                positions,
                np.full(len(positions), height - 0.01),
                transform=axes.get_xaxis_transform(),
                color=colour,
                marker=ZERO_MARKER,
                markersize=3,
                linestyle="none",
                label="_zero",
            )
    return height


def _set_limits(axes: Axes, nsr: Floats, reserved: float) -> None:
    """Leave the share `reserved` of the height free below the data, and room for names above."""
    shown = nsr[np.isfinite(nsr) & (nsr > 0)]
    low, high = (np.log10(shown.min()), np.log10(shown.max())) if shown.size else (-6.0, 0.0)
    span = max(high - low, 1.0)
    above, share = 0.34, reserved + 0.05
    below = (1 + above) * share / (1 - share)
    axes.set_ylim(10 ** (low - below * span), 10 ** (high + above * span))


def _name_worst(axes: Axes, network: Network, values: Sequence[Floats], worst: int) -> None:
    """Names along the upper edge, each with a line to the highest point of its operator."""
    chosen, highest = worst_operators(values, worst), _highest(values)
    character = CHARACTER / _pitch(axes, network)
    widths = [(len(network.label(position)) + 2) * character for position in chosen]
    places = spread([float(position) for position in chosen], widths, (-1.0, float(len(network.operators))))
    for position, place in zip(chosen, places, strict=True):
        axes.annotate(
            network.label(position),
            xy=(position, highest[position]),
            xytext=(place, 0.985),
            textcoords=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=LABEL_SIZE,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )


def worst_operators(values: Sequence[Floats], worst: int) -> list[int]:
    """Positions of the `worst` operators by their highest NSR in any series, in graph order."""
    highest = _highest(values)
    known = np.flatnonzero(highest > 0)
    order = np.argsort(-highest[known], kind="stable")[:worst]
    return sorted(int(position) for position in known[order])


def _highest(values: Sequence[Floats]) -> Floats:
    """The highest finite NSR of each operator in any series; 0 where there is none."""
    stacked = np.stack(values)
    return np.asarray(np.where(np.isfinite(stacked), stacked, 0.0).max(axis=0))


def spread(wanted: Sequence[float], widths: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """Centres closest to `wanted` (ascending) such that boxes of `widths` lie apart inside `limits`.

    With the distances between centres taken off, this is isotonic regression: pool adjacent violators.
    """
    if not wanted:
        return []
    offsets = np.cumsum([0.0, *((a + b) / 2 for a, b in pairwise(widths))])
    pools: list[list[float]] = []
    for value in np.asarray(wanted) - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    low, high = limits[0] + widths[0] / 2, limits[1] - widths[-1] / 2 - offsets[-1]
    return [float(place) for place in np.clip(flat, low, max(low, high)) + offsets]


def _label_blocks(axes: Axes, network: Network) -> None:
    spans = list(network.spans())
    axes.set_xticks([(first + last) / 2 for _, first, last in spans], [str(block) for block, *_ in spans])
    columns = int(_pitch(axes, network) * len(network.operators) / 0.072)
    axes.set_xlabel("block\n" + textwrap.fill(f"Operators in graph order: {network.summary()}.", columns))


def _legend(figure: Figure, names: Sequence[str]) -> None:
    handles = []
    for index, name in enumerate(names):
        look, label = series(index), display_name(name)
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, markersize=5, label=label))
    zero = Line2D([], [], color=GREY, marker=ZERO_MARKER, markersize=4, linestyle="none")
    zero.set_label("NSR = 0, off the scale")
    handles.append(zero)
    widest = 0.6 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_size_inches()[0] / widest))
    figure.legend(handles=handles, loc="outside upper right", ncols=min(columns, len(handles)))
