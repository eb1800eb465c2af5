"""Attention rollout as the head mean is drawn; of a model that has none, the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ptq2themoon.evaluate.attention_maps import AttentionMaps, told_apart
from ptq2themoon.plots.attention_figures import FIRST_LINE, MARGIN, TITLE, attention_overview
from ptq2themoon.plots.attention_text import LINE, wrapped, write_lines
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.style import styled

WIDTH = 6.0  # inches, of a figure that holds but a sentence


@styled
def attention_rollout(
    rollouts: Mapping[str, AttentionMaps | str],
    label_names: Sequence[str] | None = None,
    rows: int = 4,
    colormap: str = "viridis",
) -> Figure:
    """The first `rows` images: original, then rollout and overlay of each graph in `rollouts`."""
    maps, reason = told_apart(rollouts)
    if not reason:
        return attention_overview(maps, label_names, rows, colormap)
    lines = wrapped(f"{reason[0].upper()}{reason[1:]}.", WIDTH - 2 * MARGIN)
    canvas = Canvas.of(WIDTH, FIRST_LINE + LINE * len(lines) + 0.04)
    canvas.text(MARGIN, TITLE, "No attention rollout of this model", fontsize=10.5, va="center")
    write_lines(canvas, MARGIN, FIRST_LINE, lines)
    return canvas.figure
