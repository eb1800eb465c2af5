"""Where the class token looks, or all tokens on average: full precision beside each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ptq2themoon.evaluate.attention_maps import (
    AttentionMaps,
    check_image_index,
    check_same_images,
    map_similarity,
)
from ptq2themoon.evaluate.attention_query import ROLLOUT
from ptq2themoon.plots.attention_numbers import head_numbers, overview_numbers
from ptq2themoon.plots.attention_text import (
    LINE,
    aspect,
    key,
    remarks,
    short,
    show_original,
    show_row_image,
    title,
    wrapped,
    write_lines,
)
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.heatmap import (
    Array,
    Extend,
    colour_bar,
    common_scale,
    show_map,
    show_overlay,
)
from ptq2themoon.plots.style import GREY, display_name, styled

# Inches.
CELL = 1.05
SMALL_CELL = 0.8
GAP = 0.06
GROUP_GAP = 0.22
NOTE = 0.2
MARGIN = 0.12
TITLE = 0.2
FIRST_LINE = 0.42
BELOW_BAND = 0.58  # the scales of one row of heads, and the names of the next

HEADS_A_ROW = 12


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
    cosine similarity with the first graph's. Attention that makes no map is shown in numbers.
    """
    check_same_images(maps)
    reference = next(iter(maps.values()))
    if not reference.is_map:
        return overview_numbers(maps, label_names, rows)
    count = min(rows, len(reference.images))
    height, left = CELL * aspect(reference), MARGIN + 0.38
    groups = [left + CELL + GROUP_GAP + i * (2 * CELL + GAP + GROUP_GAP) for i in range(len(maps))]
    right = groups[-1] + 2 * CELL + GAP
    width = right + 0.66
    said = remarks(reference, width - 2 * MARGIN)
    meaning = wrapped(key(maps, "row"), width - left - MARGIN)
    top = 0.88 + LINE * len(said)
    below = top + count * (height + NOTE)
    canvas = Canvas.of(width, below + 0.2 + LINE * len(meaning))
    canvas.text(MARGIN, TITLE, title(reference), fontsize=10.5, va="center")
    write_lines(canvas, MARGIN, FIRST_LINE, said)
    write_lines(canvas, left, below + 0.17, meaning)
    canvas.text(left + CELL / 2, top - 0.1, "original", ha="center", va="baseline")
    map_name = "rollout" if reference.measure == ROLLOUT else "head mean"
    for x, name in zip(groups, maps, strict=True):
        _group_title(canvas, x, top, display_name(name), map_name)
    for row in range(count):
        y = top + row * (height + NOTE)
        show_row_image(canvas, reference, row, label_names, (MARGIN + 0.14, left, y, CELL))
        scale, extend = _overview_row(canvas, maps, row, y, groups, colormap)
        bar = canvas.axes(right + 0.1, y, 0.09, height, f"scale:{row}")
        colour_bar(bar, scale, extend, colormap, "vertical")
    return canvas.figure


def _group_title(canvas: Canvas, x: float, top: float, name: str, map_name: str) -> None:
    width = 2 * CELL + GAP
    canvas.text(x + width / 2, top - 0.33, name, ha="center", va="baseline", weight="bold", fontsize=9.5)
    canvas.rule(x, x + width, top - 0.26)
    canvas.text(x + CELL / 2, top - 0.1, map_name, ha="center", va="baseline")
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
    # Rollouts hardly differ in direction: most of each is what all patches have in common.
    digits = 5 if next(iter(maps.values())).measure == ROLLOUT else 3
    for i, (x, (name, mean)) in enumerate(zip(groups, means.items(), strict=True)):
        show_map(canvas.axes(x, y, CELL, height, f"mean:{name}:{row}"), mean, scale, colormap)
        overlay = canvas.axes(x + CELL + GAP, y, CELL, height, f"overlay:{name}:{row}")
        show_overlay(overlay, image, mean, scale, colormap)
        if i:
            _similarity_note(canvas, x + CELL / 2, y + height, reference, mean, digits)
    return scale, extend


@styled
def attention_heads(
    maps: Mapping[str, AttentionMaps],
    index: int = 0,
    label_names: Sequence[str] | None = None,
    colormap: str = "viridis",
) -> Figure:
    """Every head (columns, twelve beside each other) of each graph in `maps` (rows) for the image at `index`.

    Every head has one colour scale, as every row of the overview has. Attention that makes no map is
    shown in numbers.
    """
    check_same_images(maps)
    first = next(iter(maps.values()))
    check_image_index(index, first)
    if not first.is_map:
        return head_numbers(maps, index, label_names)
    cell = CELL if first.heads <= 6 else SMALL_CELL
    height, left = cell * aspect(first), MARGIN + CELL + 0.5
    width = max(left + min(first.heads, HEADS_A_ROW) * (cell + GAP) + MARGIN, 5.2)
    said = remarks(first, width - 2 * MARGIN)
    meaning = wrapped(key(maps, "head"), width - 2 * MARGIN)
    top, band = 0.72 + LINE * len(said), len(maps) * (height + NOTE) + BELOW_BAND
    bands = -(-first.heads // HEADS_A_ROW)
    # Under the original stand up to two lines of its class's name.
    below = top + max(bands * band - 0.26, CELL * aspect(first) + 0.36)
    canvas = Canvas.of(width, below + 0.16 + LINE * len(meaning))
    canvas.text(MARGIN, TITLE, title(first), fontsize=10.5, va="center")
    write_lines(canvas, MARGIN, FIRST_LINE, said)
    write_lines(canvas, MARGIN, below + 0.12, meaning)
    show_original(canvas, first, index, label_names, (MARGIN, top, CELL))
    for band_top in (top + number * band for number in range(bands)):
        for row, graph in enumerate(maps):
            y, name = band_top + row * (height + NOTE) + height / 2, short(display_name(graph), 12)
            canvas.text(left - 0.08, y, name, rotation=90, ha="right", va="center", weight="bold")
    for head in range(first.heads):
        weights = {graph: each.attention[index, head] for graph, each in maps.items()}
        x, y = left + head % HEADS_A_ROW * (cell + GAP), top + head // HEADS_A_ROW * band
        _head_column(canvas, weights, head, (x, y, cell, height), colormap)
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


def _similarity_note(
    canvas: Canvas, x: float, y: float, reference: Array, attention: Array, digits: int = 3
) -> None:
    text = f"cos {map_similarity(reference, attention):.{digits}f}"
    canvas.text(x, y + 0.1, text, ha="center", va="center", fontsize=7, color=GREY)
