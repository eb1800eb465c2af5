"""Sources of calibration images: what they look like, and what a model that is calibrated on them reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.style import GREY, Series, series, styled
from ptq2themoon.vocabulary.errors import UserError

Images = npt.NDArray[np.uint8]  # [N, C, H, W]

# Inches.
MARGIN, TITLE_BAND, NAME_BAND, GAP = 0.25, 0.62, 0.62, 0.45
LINE, CHARACTER = 0.17, 0.095  # of a source's name
PANEL_HEIGHT, PANEL_LEFT, PANEL_GAP, BELOW = 2.1, 0.35, 0.62, 0.42
WIDTH, WIDEST = 9.6, 3.2  # of the figure, and of one source
ROWS = 2  # of images
SPREAD = 0.6  # of a step: over what sources stand beside each other


class Measure(NamedTuple):
    """One panel: a column, its label, and the column of what floating point has."""

    column: str
    label: str
    whole: str | None


PANELS = (
    Measure("top1", "top-1 (%)", "fp32_top1"),
    Measure("agreement", "agreement with FP32 (%)", None),
    Measure("logits_sqnr_db", "output SQNR (dB)", None),
)


@styled
def data_free(table: pd.DataFrame, images: Mapping[str, Images], model: str) -> Figure:
    """Above images of each source with the entropy of their patches, below accuracy, agreement and SQNR.

    Whiskers are one standard deviation over seeds. A panel is left out where the model has no such figure.

    Args:
        table: of `tables.source_means`.
        images: of the sources in the table, in its order.
    """
    names = list(dict.fromkeys(table["source"]))
    if names != list(images):
        raise UserError(f"--images are of {', '.join(images)}, but the table has {', '.join(names)}")
    width = min(WIDEST, (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names))
    height = width * max(_aspect(each) for each in images.values())
    top = TITLE_BAND + NAME_BAND
    canvas = Canvas.of(WIDTH, top + height + 0.55 + PANEL_HEIGHT + BELOW)
    canvas.text(
        MARGIN, 0.2, f"Calibration images of {model}, and what they reach", fontsize=10.5, va="center"
    )
    canvas.text(MARGIN, 0.42, _subtitle(table), fontsize=8.5, va="center", color=GREY)
    for index, name in enumerate(names):
        x = MARGIN + index * (width + GAP)
        _name(canvas, x, top - 0.22, wrap(name, int(width / CHARACTER)), series(index))
        canvas.text(x, top - 0.12, _entropy(table, name), fontsize=8, va="center", color=GREY)
        own = width * _aspect(images[name])
        _show(canvas.axes(x, top, width, own, f"images:{name}"), images[name])
    _panels(canvas, table, names, top + height + 0.55)
    return canvas.figure


def _name(canvas: Canvas, x: float, bottom: float, lines: Sequence[str], look: Series) -> None:
    """A source's name above `bottom`, behind its mark."""
    first = bottom - LINE * len(lines) + LINE / 2
    mark = Line2D(
        [(x + 0.05) / canvas.width], [1 - first / canvas.height], marker=look.marker, color=look.colour,
        markersize=6, transform=canvas.figure.transFigure,
    )  # fmt: skip
    canvas.figure.add_artist(mark)
    for number, line in enumerate(lines):
        y = first + LINE * number
        canvas.text(x + 0.16, y, line, weight="bold", fontsize=9.5, va="center", color=look.colour)


def _subtitle(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    seeds = int(first["seeds"])
    over = f"mean ± 1 σ of {seeds} seeds; the images shown are of the first" if seeds > 1 else "one seed"
    return f"{int(first['images']):,} evaluation images; {over}"


def _entropy(table: pd.DataFrame, name: str) -> str:
    own = table[table["source"] == name].iloc[0]
    count = f"{int(own['calibration_images'])} images"
    if pd.isna(own["entropy"]):
        return count
    return f"{count}, entropy {own['entropy']:.1f}".replace("-", "−")


def _grid(images: Images) -> tuple[int, int]:
    """Rows and columns."""
    rows = min(ROWS, len(images))
    return rows, math.ceil(len(images) / rows)


def _aspect(images: Images) -> float:
    """Height of the mosaic beside its width."""
    rows, columns = _grid(images)
    return rows * images.shape[2] / (columns * images.shape[3])


def _show(axes: Axes, images: Images) -> None:
    """A mosaic with a thin white line between images."""
    rows, columns = _grid(images)
    _, channels, height, width = images.shape
    line = max(1, width // 28)
    mosaic = np.full(
        (rows * (height + line) - line, columns * (width + line) - line, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        y, x = index // columns * (height + line), index % columns * (width + line)
        mosaic[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    shown = mosaic[..., 0] if channels == 1 else mosaic
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _panels(canvas: Canvas, table: pd.DataFrame, names: Sequence[str], top: float) -> None:
    panels = [panel for panel in PANELS if table[panel.column].notna().any()]
    space = WIDTH - 2 * MARGIN - PANEL_LEFT - PANEL_GAP * (len(panels) - 1)
    width = space / len(panels)
    for index, panel in enumerate(panels):
        x = MARGIN + PANEL_LEFT + index * (width + PANEL_GAP)
        axes = canvas.axes(x, top, width, PANEL_HEIGHT, f"panel:{panel.column}")
        _draw(axes, table, names, panel)


def _draw(axes: Axes, table: pd.DataFrame, names: Sequence[str], panel: Measure) -> None:
    bits = list(dict.fromkeys(table["bits"]))
    for index, name in enumerate(names):
        own, look = table[table["source"] == name].set_index("bits"), series(index)
        x = np.arange(len(bits)) + SPREAD * ((index + 0.5) / len(names) - 0.5)
        values = own.loc[bits, panel.column].to_numpy(dtype=float)
        spread = np.nan_to_num(own.loc[bits, f"{panel.column}_std"].to_numpy(dtype=float))
        axes.errorbar(
            x, values, yerr=spread, linestyle="none", marker=look.marker, markersize=5.5, color=look.colour,
            elinewidth=1, capsize=2.5,
        )  # fmt: skip
    for line in range(1, len(bits)):
        axes.axvline(line - 0.5, color="#DDDDDD", linewidth=0.7)
    if panel.whole is not None and pd.notna(table[panel.whole].iloc[0]):
        whole = float(table[panel.whole].iloc[0])
        axes.axhline(whole, color=GREY, linewidth=0.9, linestyle="--")
        axes.annotate(
            "FP32", (1, whole), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
            textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip
    axes.set_xticks(range(len(bits)), [each.upper() for each in bits])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(bits) - 0.5)
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.set_title(panel.label)
