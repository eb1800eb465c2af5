"""The error of every operator along the network: of the first recipe, and how the others differ from it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.plots.attention_text import short
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
NAMED = 11  # characters of a recipe's name beside a panel
HEIGHTS = [1.75, 1.15]  # of a panel of the first recipe, and of the others against it
ZERO_MARKER: Final = 7  # matplotlib's CARETDOWN
MORE_MARKER: Final = 6  # CARETUP
OFF = "_off"  # label of such marks, which a legend passes over
LOW, ROW = 0.035, 0.045  # shares of a panel's height: of the first row of such marks, and from row to row


@styled
def errors_along_network(
    tables: Mapping[str, pd.DataFrame], images: Mapping[str, int] | None = None, worst: int = 3
) -> Figure:
    """NSR of every operator with the first recipe, a panel per mode, which names the `worst`.

    Below each stands the panel of the other recipes: their noise against the first's, in dB. On one axis
    they would hide each other: recipes differ by far less than operators do.

    Args:
        tables: rows of operators.csv by recipe.
        images: number of images behind each mode, for the titles.
    """
    for name, table in tables.items():
        check_table(name, table)
    network = Network.of(tables)
    modes = [mode for mode in MODES if any((table["mode"] == mode).any() for table in tables.values())]
    width = float(np.clip(len(network.operators) * PITCH + MARGINS, *WIDTH))
    heights = HEIGHTS[: 1 + (len(tables) > 1)]
    figure = Figure(figsize=(width, 1.2 + sum(heights) * len(modes)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.05)  # type: ignore[union-attr, call-arg]
    count = len(heights) * len(modes)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=heights * len(modes))[:, 0]
    for axes in panels:
        axes.tick_params(axis="x", length=0)
        _show_blocks(axes, network)
    for number, mode in enumerate(modes):
        axes, *below = panels[number * len(heights) : (number + 1) * len(heights)]
        axes.set_title(_panel_title(mode, images or {}, tables), fontsize=9)
        values = {name: _values(table, mode, network) for name, table in tables.items()}
        first = next(iter(values))
        _draw_level(axes, network, first, values[first])
        _name_worst(axes, network, values[first], worst)
        for differences in below:
            _draw_differences(differences, network, values)
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


def _show_blocks(axes: Axes, network: Network) -> None:
    for block, first, last in network.spans():
        if block % 2 == 0:
            axes.axvspan(first - 0.5, last + 0.5, color=PALE, linewidth=0, zorder=0)
            continue
        for edge, beside in ((first - 0.5, first - 1), (last + 0.5, last + 1)):
            if network.is_outside(beside):  # white beside white
                axes.axvline(edge, color=EDGE, linewidth=0.7, zorder=0)
    axes.set_xlim(-1, len(network.operators))
    axes.grid(axis="y")


def _draw_level(axes: Axes, network: Network, name: str, nsr: Floats) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(f"NSR\n{short(display_name(name), NAMED)}", multialignment="center")
    there = np.flatnonzero(np.isfinite(nsr))  # the line passes over what the recipe does not quantize
    shown = np.where(nsr[there] > 0, nsr[there], np.nan)
    axes.plot(there, shown, label=name, **_look(axes, network, 0, 0.0))
    zeros = np.flatnonzero(nsr == 0)
    _mark_off(axes, zeros, LOW, ZERO_MARKER, GREY)
    _set_limits(axes, nsr, ROW if zeros.size else 0.0)


def _draw_differences(axes: Axes, network: Network, values: Mapping[str, Floats]) -> None:
    """Of all but the first; noise that one side alone has is off the scale, above or below."""
    (name, first), *others = values.items()
    axes.axhline(0, color=series(0).colour, linewidth=0.9)
    axes.set_ylabel(f"against\n{short(display_name(name), NAMED)} (dB)", multialignment="center")
    finite = [0.0]
    for index, (other, nsr) in enumerate(others, 1):
        change = decibels(nsr, first)
        there = np.flatnonzero(np.isfinite(change))
        finite += change[there].tolist()
        look = _look(axes, network, index, (index - 1) / max(len(others) - 1, 1))
        axes.plot(there, change[there], label=other, **look)
        for sign, edge, marker in ((-1, LOW, ZERO_MARKER), (1, 1 - LOW, MORE_MARKER)):
            off = np.flatnonzero(np.isinf(change) & (np.sign(change) == sign))
            _mark_off(axes, off, edge + sign * (1 - index) * ROW, marker, series(index).colour)
    low, high = min(finite), max(finite)
    span = max(high - low, 1.0)
    axes.set_ylim(low - 0.2 * span, high + 0.2 * span)


def decibels(nsr: Floats, first: Floats) -> Floats:
    """How much more noise than `first`, in dB; infinite where one side alone has none, NaN where both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(nsr / first))


def _look(axes: Axes, network: Network, index: int, thinness: float) -> dict[str, Any]:
    """Of the line of a recipe; later ones are thinner, so that an equal one below still shows."""
    look, size = series(index), min(1.0, _pitch(axes, network) / PITCH)
    width, marker = (1.9 - 1.0 * thinness) * size, (4.8 - 1.8 * thinness) * size
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markeredgewidth": 0}
    return {**style, "linewidth": width, "markersize": marker}


def _pitch(axes: Axes, network: Network) -> float:
    """Inches from operator to operator."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float((figure.get_size_inches()[0] - MARGINS) / len(network.operators))


def _mark_off(axes: Axes, positions: npt.NDArray[np.intp], height: float, marker: int, colour: str) -> None:
    """Mark operators that are off the scale, at a share of the panel's height."""
    if positions.size:
        style = {"color": colour, "marker": marker, "markersize": 3, "linestyle": "none", "label": OFF}
        heights = np.full(len(positions), height)
        axes.plot(positions, heights, transform=axes.get_xaxis_transform(), **style)  # type: ignore[arg-type]


def _set_limits(axes: Axes, nsr: Floats, reserved: float) -> None:
    """Leave the share `reserved` of the height free below the data, and room for names above."""
    shown = nsr[np.isfinite(nsr) & (nsr > 0)]
    low, high = (np.log10(shown.min()), np.log10(shown.max())) if shown.size else (-6.0, 0.0)
    span = max(high - low, 1.0)
    above, share = 0.34, reserved + 0.05
    below = (1 + above) * share / (1 - share)
    axes.set_ylim(10 ** (low - below * span), 10 ** (high + above * span))


def _name_worst(axes: Axes, network: Network, nsr: Floats, worst: int) -> None:
    """Names along the upper edge, each with a line to the point of its operator."""
    chosen = worst_operators(nsr, worst)
    character = CHARACTER / _pitch(axes, network)
    widths = [(len(network.label(position)) + 2) * character for position in chosen]
    places = spread([float(position) for position in chosen], widths, (-1.0, float(len(network.operators))))
    for position, place in zip(chosen, places, strict=True):
        axes.annotate(
            network.label(position),
            xy=(position, nsr[position]),
            xytext=(place, 0.985),
            textcoords=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=LABEL_SIZE,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )


def worst_operators(nsr: Floats, worst: int) -> list[int]:
    """Positions of the `worst` operators by their NSR, in graph order."""
    known = np.flatnonzero(np.isfinite(nsr) & (nsr > 0))
    order = np.argsort(-nsr[known], kind="stable")[:worst]
    return sorted(int(position) for position in known[order])


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
    marks: list[tuple[Any, str]] = [
        (ZERO_MARKER, "NSR = 0, off the scale"),
        (MORE_MARKER, f"NSR = 0 with {display_name(names[0])} alone"),
    ]
    drawn = {line.get_marker() for axes in figure.axes for line in axes.lines if line.get_label() == OFF}
    for marker, said in marks:
        if marker in drawn:
            handles.append(
                Line2D([], [], color=GREY, marker=marker, markersize=4, linestyle="none", label=said)
            )
    widest = 0.6 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_size_inches()[0] / widest))
    figure.legend(handles=handles, loc="outside upper right", ncols=min(columns, len(handles)))
