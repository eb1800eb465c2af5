"""How every figure looks, and how it is saved with the same bytes each time."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import NamedTuple, ParamSpec

import matplotlib.style
from matplotlib.figure import Figure

from ptq2themoon.plots.small_files import small_png, small_svg
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32

P = ParamSpec("P")

FULL_PRECISION = FP32
GREY, LIGHT_GREY, PALE = "#4D4D4D", "#9A9A9A", "#F1F1F1"
# Okabe and Ito's palette, the colours that print well on white first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Of lines but for the last: a hatch of dots takes a hundred kilobytes in an SVG.
HATCHES = ("///", "|||", "\\\\\\", "xxx", "---", "+++", "//", "..")

RC: dict[str, object] = {
    # The first ships with matplotlib, so that a PNG is the same everywhere; the others have its widths, for
    # the reader of an SVG, whose text stays text: small, searchable and read aloud.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Bitstream Vera Sans", "Verdana", "sans-serif"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ptq2themoon",
}


class Series(NamedTuple):
    """What tells one recipe from another; never the colour alone."""

    colour: str
    marker: str
    hatch: str


def series(index: int) -> Series:
    """The look of the recipe at `index` in the order of the tables; 56 before one repeats."""
    return Series(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], HATCHES[index % len(HATCHES)])


def display_name(name: str) -> str:
    """A recipe's name as figures show it: FP32 for full precision."""
    return "FP32" if name == FULL_PRECISION else name


def context() -> AbstractContextManager[None]:
    """The project's style over matplotlib's defaults: a user's matplotlibrc changes nothing."""
    return matplotlib.style.context(RC, after_reset=True)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw a figure in the project's style."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with context():
            return draw(*args, **kwargs)

    return in_style


def save(figure: Figure, stage: Stage, png: Path, svg: Path, dpi: int) -> None:
    """Write both forms as outputs of `stage`; no date or version enters the bytes.

    `dpi` is the resolution of the PNG and of the images inside the SVG.
    """
    pixels, drawing = io.BytesIO(), io.StringIO()
    with context():
        figure.savefig(pixels, format="png", dpi=dpi, metadata={"Software": None})
        figure.savefig(drawing, format="svg", dpi=dpi, metadata={"Date": None, "Creator": None})
    stage.temporary(png).write_bytes(small_png(pixels.getvalue()))
    stage.temporary(svg).write_text(small_svg(drawing.getvalue()), encoding="utf-8")


def check_dpi(dpi: int) -> None:
    """Raise `UserError` unless `dpi` lies between 50 and 1200."""
    if not 50 <= dpi <= 1200:
        raise UserError(f"--dpi {dpi}: must lie between 50 and 1200")
