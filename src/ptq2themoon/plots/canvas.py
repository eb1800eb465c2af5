"""A figure whose panels are placed in inches, so that grids of images keep their gaps at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ptq2themoon.plots.style import GREY


@dataclass(frozen=True)
class Canvas:
    """Positions count in inches, rightwards and downwards from the top left corner."""

    figure: Figure
    width: float
    height: float

    @classmethod
    def of(cls, width: float, height: float) -> Canvas:
        """An empty figure, `width` by `height` inches."""
        return cls(Figure(figsize=(width, height)), width, height)

    def axes(self, x: float, y: float, width: float, height: float, label: str) -> Axes:
        """New axes; `x` and `y` in inches from the upper left corner."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, label=label)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write `text` at `x`, `y`, in inches from the upper left corner."""
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def rule(self, left: float, right: float, y: float) -> None:
        """A thin horizontal line, as under the title of a group of columns."""
        height = 1 - y / self.height
        x = [left / self.width, right / self.width]
        line = Line2D(x, [height, height], color=GREY, linewidth=0.8, transform=self.figure.transFigure)
        self.figure.add_artist(line)
