"""Attention rollout as the head mean is drawn; of a model that has none, the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from ptq2themoon.plots.attention_figures import FIRST_LINE, MARGIN, TITLE, attention_overview
from ptq2themoon.plots.attention_tables import overview_table
from ptq2themoon.plots.attention_text import LINE, wrapped, write_lines
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.inputs import AttentionMaps
from ptq2themoon.plots.style import styled

WIDTH = 6.0  # inches, of a figure that holds but a sentence
Rollouts = Mapping[str, AttentionMaps | str]


@styled
def attention_rollout(
    rollouts: Rollouts,
    label_names: Sequence[str] | None = None,
    rows: int = 4,
    colormap: str = "viridis",
) -> Figure:
    """The first `rows` images: original, then rollout and overlay of each graph in `rollouts`."""
    maps, reason = _told_apart(rollouts)
    if not reason:
        return attention_overview(maps, label_names, rows, colormap)
    lines = wrapped(f"{reason[0].upper()}{reason[1:]}.", WIDTH - 2 * MARGIN)
    canvas = Canvas.of(WIDTH, FIRST_LINE + LINE * len(lines) + 0.04)
    canvas.text(MARGIN, TITLE, "No attention rollout of this model", fontsize=10.5, va="center")
    write_lines(canvas, MARGIN, FIRST_LINE, lines)
    return canvas.figure


def rollout_table(rollouts: Rollouts, rows: int) -> pd.DataFrame:
    """What the figure shows: every weight, or the reason."""
    maps, reason = _told_apart(rollouts)
    return pd.DataFrame({"reason": [reason]}) if reason else overview_table(maps, rows)


def _told_apart(rollouts: Rollouts) -> tuple[dict[str, AttentionMaps], str]:
    """(maps, the reason why a graph has none)."""
    maps = {name: each for name, each in rollouts.items() if not isinstance(each, str)}
    return maps, next((each for each in rollouts.values() if isinstance(each, str)), "")
