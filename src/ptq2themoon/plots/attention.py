"""Where the class token looks: full precision beside each recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ptq2themoon.errors import UserError
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.heatmap import (
    Array,
    Extend,
    colour_bar,
    common_scale,
    show_image,
    show_map,
    show_overlay,
)
from ptq2themoon.plots.inputs import AttentionMaps, check_same_images
from ptq2themoon.plots.style import GREY, display_name, styled

# Inches.
CELL = 1.05
SMALL_CELL = 0.8
GAP = 0.06
GROUP_GAP = 0.22
NOTE = 0.2
MARGIN = 0.12


@styled
def attention_overview(
    maps: Mapping[str, AttentionMaps],
    label_names: Sequence[str] | None = None,
    rows: int = 4,
    colormap: str = "viridis",
) -> Figure:
    """The first `rows` images: original, then head mean and overlay of each graph in `maps`.

    Every row has one colour scale, from 0 to the first graph's largest weight; an arrow on its
    bar says that some recipe goes beyond. Under each head mean but the first graph's stands its
    cosine similarity with the first graph's.
    """
    check_same_images(maps)
    reference = next(iter(maps.values()))
    count = min(rows, len(reference.images))
    height = CELL * _aspect(reference)
    left, top = MARGIN + 0.38, 0.78
    groups = [left + CELL + GROUP_GAP + i * (2 * CELL + GAP + GROUP_GAP) for i in range(len(maps))]
    right = groups[-1] + 2 * CELL + GAP
    canvas = Canvas.of(right + 0.66, top + count * (height + NOTE) + 0.34)
    canvas.text(MARGIN, 0.2, _title(reference), fontsize=10.5, va="center")
    canvas.text(left, canvas.height - 0.16, _key(maps, "row"), fontsize=7.5, color=GREY, va="center")
    canvas.text(left + CELL / 2, top - 0.1, "original", ha="center", va="baseline")
    for x, name in zip(groups, maps, strict=True):
        _group_title(canvas, x, top, display_name(name))
    for row in range(count):
        y = top + row * (height + NOTE)
        canvas.text(
            MARGIN + 0.14,
            y + height / 2,
            _short(_class_name(reference, row, label_names), 18),
            rotation=90,
            ha="center",
            va="center",
        )
        show_image(canvas.axes(left, y, CELL, height, f"original:{row}"), reference.images[row])
        scale, extend = _overview_row(canvas, maps, row, y, groups, colormap)
        bar = canvas.axes(right + 0.1, y, 0.09, height, f"scale:{row}")
        colour_bar(bar, scale, extend, colormap, "vertical")
    return canvas.figure


def _group_title(canvas: Canvas, x: float, top: float, name: str) -> None:
    width = 2 * CELL + GAP
    canvas.text(x + width / 2, top - 0.33, name, ha="center", va="baseline", weight="bold", fontsize=9.5)
    canvas.rule(x, x + width, top - 0.26)
    canvas.text(x + CELL / 2, top - 0.1, "head mean", ha="center", va="baseline")
    canvas.text(x + CELL * 1.5 + GAP, top - 0.1, "overlay", ha="center", va="baseline")


def _overview_row(
    canvas: Canvas,
    maps: Mapping[str, AttentionMaps],
    row: int,
    y: float,
    groups: Sequence[float],
    colormap: str,
) -> tuple[Normalize, Extend]:
    """Draw one image's maps; return the scale they share and whether one goes beyond it."""
    means = {name: each.attention[row].mean(axis=0) for name, each in maps.items()}
    image = next(iter(maps.values())).images[row]
    height = CELL * image.shape[1] / image.shape[2]
    reference, *_ = means.values()
    scale, extend = common_scale(list(means.values()))
    for i, (x, (name, mean)) in enumerate(zip(groups, means.items(), strict=True)):
        show_map(canvas.axes(x, y, CELL, height, f"mean:{name}:{row}"), mean, scale, colormap)
        overlay = canvas.axes(x + CELL + GAP, y, CELL, height, f"overlay:{name}:{row}")
        show_overlay(overlay, image, mean, scale, colormap)
        if i:
            _similarity_note(canvas, x + CELL / 2, y + height, reference, mean)
    return scale, extend


@styled
def attention_heads(
    maps: Mapping[str, AttentionMaps],
    index: int = 0,
    label_names: Sequence[str] | None = None,
    colormap: str = "viridis",
) -> Figure:
    """Every head (columns) of each graph in `maps` (rows) for the image at `index`.

    Every head has one colour scale, as every row of the overview has.
    """
    check_same_images(maps)
    first = next(iter(maps.values()))
    check_image_index(index, first)
    cell = CELL if first.heads <= 6 else SMALL_CELL
    height = cell * _aspect(first)
    left, top = MARGIN + CELL + 0.5, 0.72
    bottom = top + len(maps) * (height + NOTE)
    canvas = Canvas.of(max(left + first.heads * (cell + GAP) + MARGIN, 4.9), bottom + 0.36)
    canvas.text(MARGIN, 0.2, _title(first), fontsize=10.5, va="center")
    canvas.text(MARGIN + CELL / 2, top - 0.1, "original", ha="center", va="baseline")
    original = canvas.axes(MARGIN, top, CELL, CELL * _aspect(first), "original")
    show_image(original, first.images[index])
    name, below = _class_name(first, index, label_names), top + CELL * _aspect(first)
    canvas.text(MARGIN + CELL / 2, below + 0.06, _short(name, 18), ha="center", va="top")
    key = textwrap.fill(_key(maps, "head"), 21)
    canvas.text(MARGIN, bottom + 0.24, key, va="bottom", fontsize=7.5, color=GREY)
    for row, graph in enumerate(maps):
        y = top + row * (height + NOTE) + height / 2
        name = _short(display_name(graph), 12)
        canvas.text(left - 0.08, y, name, rotation=90, ha="right", va="center", weight="bold")
    for head in range(first.heads):
        weights = {graph: each.attention[index, head] for graph, each in maps.items()}
        _head_column(canvas, weights, head, (left + head * (cell + GAP), top, cell, height), colormap)
    return canvas.figure


def _head_column(
    canvas: Canvas,
    weights: Mapping[str, Array],
    head: int,
    position: tuple[float, float, float, float],
    colormap: str,
) -> None:
    """Draw one head's maps from `position` (x, y, width, height of a map) down, and their scale."""
    x, top, cell, height = position
    canvas.text(x + cell / 2, top - 0.1, f"head {head}", ha="center", va="baseline")
    reference, *_ = weights.values()
    scale, extend = common_scale(list(weights.values()))
    y = top
    for row, (graph, attention) in enumerate(weights.items()):
        show_map(canvas.axes(x, y, cell, height, f"head:{graph}:{head}"), attention, scale, colormap)
        if row:
            _similarity_note(canvas, x + cell / 2, y + height, reference, attention)
        y += height + NOTE
    bar = canvas.axes(x, y + 0.03, cell, 0.08, f"scale:{head}")
    colour_bar(bar, scale, extend, colormap, "horizontal")


def check_image_index(index: int, maps: AttentionMaps) -> None:
    count = len(maps.images)
    if not 0 <= index < count:
        raise UserError(f"--image-index {index}: the maps hold {count} images; valid: 0 to {count - 1}")


def cosine_similarity(a: Array, b: Array) -> float:
    """Of two maps taken as vectors; 0 when one of them is all zero."""
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b) / norm) if norm else 0.0


def _aspect(maps: AttentionMaps) -> float:
    height, width = maps.images.shape[2:]
    return float(height / width)


def _title(maps: AttentionMaps) -> str:
    return f"Attention of the class token to the patches, block {maps.block}"


def _key(maps: Mapping[str, AttentionMaps], scaled: str) -> str:
    """What colours and notes mean; `scaled` is what has a colour scale of its own."""
    reference = display_name(next(iter(maps)))
    colour = f"Colour: attention weight; each {scaled}'s scale ends at {reference}'s largest"
    return f"{colour} (arrow: exceeded). cos: cosine similarity with {reference}'s map."


def _similarity_note(canvas: Canvas, x: float, y: float, reference: Array, attention: Array) -> None:
    text = f"cos {cosine_similarity(reference, attention):.3f}"
    canvas.text(x, y + 0.1, text, ha="center", va="center", fontsize=7, color=GREY)


def _class_name(maps: AttentionMaps, index: int, names: Sequence[str] | None) -> str:
    label = maps.labels[index]
    if label < 0:
        return f"image {index}"
    return names[label] if names is not None and label < len(names) else f"class {label}"


def _short(name: str, width: int) -> str:
    """The first of a class's synonyms, on at most two lines of about `width` characters."""
    first, *rest = textwrap.wrap(name.split(",")[0], width) or [""]
    return "\n".join([first, textwrap.shorten(" ".join(rest), width, placeholder=" …")] if rest else [first])
