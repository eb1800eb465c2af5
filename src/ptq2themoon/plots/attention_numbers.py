"""Attention that makes no map, such as that within windows: how near each recipe keeps to full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.evaluate.attention_maps import AttentionMaps, similarity_of_heads
from ptq2themoon.evaluate.attention_query import ROLLOUT
from ptq2themoon.plots.attention_text import (
    LINE,
    aspect,
    remarks,
    short,
    show_original,
    show_row_image,
    title,
    wrapped,
    write_lines,
)
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.style import GREY, display_name, series

# Inches.
MARGIN = 0.12
IMAGE = 1.05
COLUMN = 1.35
NOTE = 0.2
MEASURES = {"cosine": "cosine similarity", "kl": "KL (nats)"}
NOTHING = "no recipe to compare with"


def overview_numbers(
    maps: Mapping[str, AttentionMaps], label_names: Sequence[str] | None, rows: int
) -> Figure:
    """The first `rows` images, and how near each recipe's attention comes to the first graph's."""
    reference, *others = maps.values()
    recipes = list(maps)[1:]
    count, height = min(rows, len(reference.images)), IMAGE * aspect(reference)
    left = MARGIN + 0.38
    numbers = left + IMAGE + 0.25
    width = max(numbers + COLUMN * max(len(recipes), 1) + MARGIN, 5.6)
    said = _why_no_map(maps, width)
    top = 0.72 + LINE * len(said)
    canvas = Canvas.of(width, top + count * (height + NOTE) + 0.06)
    _head(canvas, reference, said)
    canvas.text(left + IMAGE / 2, top - 0.1, "original", ha="center", va="baseline")
    columns = [numbers + COLUMN * (i + 0.5) for i in range(len(recipes))]
    for x, recipe in zip(columns, recipes, strict=True):
        name = short(display_name(recipe), 17)
        canvas.text(x, top - 0.1, name, ha="center", va="baseline", weight="bold")
    for row in range(count):
        y = top + row * (height + NOTE)
        show_row_image(canvas, reference, row, label_names, (MARGIN + 0.14, left, y, IMAGE))
        for x, other in zip(columns, others, strict=True):
            cosine, kl = (values.mean() for values in similarity_of_heads(reference, other, row))
            canvas.text(x, y + height / 2, f"cos {cosine:.4f}\nKL {kl:.4f} nats", ha="center", va="center")
        if not others:
            canvas.text(numbers, y + height / 2, NOTHING, va="center", color=GREY)
    return canvas.figure


def head_numbers(maps: Mapping[str, AttentionMaps], index: int, label_names: Sequence[str] | None) -> Figure:
    """Cosine similarity and KL divergence of every head, one series per recipe, for the image at `index`."""
    (_, reference), *others = maps.items()
    plot = MARGIN + IMAGE + 0.95
    breadth = float(np.clip(0.24 * reference.heads, 4.0, 11.0))
    width = plot + breadth + MARGIN + 0.1
    widest = 0.6 + 0.085 * max(len(name) for name in maps)
    columns = max(1, int(breadth / widest))
    said = _why_no_map(maps, width)
    top = 0.72 + LINE * len(said) + 0.2 * -(-len(others) // columns)
    canvas = Canvas.of(width, top + 3.5)
    _head(canvas, reference, said)
    show_original(canvas, reference, index, label_names, (MARGIN, top, IMAGE))
    panels = [canvas.axes(plot, top + 1.55 * row, breadth, 1.35, name) for row, name in enumerate(MEASURES)]
    handles = []
    for place, (name, other) in enumerate(others):
        look = series(place)
        handles.append(
            Line2D([], [], color=look.colour, marker=look.marker, markersize=5, label=display_name(name))
        )
        for axes, values in zip(panels, similarity_of_heads(reference, other, index), strict=True):
            axes.plot(values, color=look.colour, marker=look.marker, markersize=5, linewidth=0.8)
    _label_heads(panels, reference.heads, bool(others))
    if handles:
        corner = (plot / width, 1 - (top - 0.02) / canvas.height)
        canvas.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=columns, borderpad=0
        )
    return canvas.figure


def _head(canvas: Canvas, maps: AttentionMaps, said: Sequence[str]) -> None:
    canvas.text(MARGIN, 0.2, title(maps), fontsize=10.5, va="center")
    write_lines(canvas, MARGIN, 0.42, said)


def _why_no_map(maps: Mapping[str, AttentionMaps], width: float) -> list[str]:
    reference = next(iter(maps.values()))
    groups, tokens = reference.attention.shape[2:]
    apart = f"attends within {groups} windows or groups of {tokens} tokens, each apart"
    alone = f"has {tokens} patches that make no grid"
    where = "the rollout" if reference.measure == ROLLOUT else f"block {reference.block}"
    why = f"No map: {where} {apart if groups > 1 else alone}."
    over = "groups and heads" if groups > 1 else "heads"
    name = display_name(next(iter(maps)))
    compared = f"this {reference.measure} against {name}'s"
    measures = f"cosine similarity (1 is equal) and KL(recipe || {name}) in nats (0 is equal)"
    text = f"{why} Numbers: {compared}, {measures}, means over {over}."
    return [*wrapped(text, width - 2 * MARGIN), *remarks(reference, width - 2 * MARGIN)]


def _label_heads(panels: Sequence[Axes], heads: int, known: bool) -> None:
    for axes, label in zip(panels, MEASURES.values(), strict=True):
        axes.set_ylabel(label)
        axes.set_xlim(-0.5, heads - 0.5)
        axes.set_xticks(range(0, heads, 1 if heads <= 24 else 4))
        axes.grid(axis="y")
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(axis="y", useOffset=False)
        if not known:
            axes.text(heads / 2 - 0.5, 0.5, NOTHING, color=GREY, ha="center", va="center")
            axes.set_ylim(0, 1)
            axes.set_yticks([])
    panels[0].tick_params(axis="x", labelbottom=False)
    panels[-1].set_xlabel("head")
