"""Images and heat maps on axes, and the colour scale that several of them share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ptq2themoon.plots.style import check_dpi
from ptq2themoon.vocabulary.errors import UserError, at_least, nearest

Array = npt.NDArray[Any]
Extend = Literal["neither", "max"]

FEW_PIXELS = 64  # along a side of an image
OVERLAY_OPACITY = (0.3, 0.8)  # at weight 0 and at the end of the scale
PERCEPTUALLY_UNIFORM = ("viridis", "plasma", "inferno", "magma", "cividis")


def check_maps(rows: int, colormap: str, dpi: int) -> None:
    """Refuse what a figure of maps cannot be drawn with, before anything is read."""
    check_dpi(dpi)
    check_colormap(colormap)
    at_least(1, rows, "--rows")


def check_colormap(name: str) -> None:
    """Refuse a colour map that matplotlib does not know."""
    if name not in matplotlib.colormaps:
        close = difflib.get_close_matches(name, matplotlib.colormaps, n=1, cutoff=0.5)
        raise UserError(f"--colormap {name}: unknown; {nearest(name, close or PERCEPTUALLY_UNIFORM)}")


def show_image(axes: Axes, image: Array) -> None:
    """Draw a uint8 [C, H, W] image on axes that count in pixels."""
    height, width = image.shape[1:]
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    # As it is an SVG keeps its pixels, which the reader's program enlarges; a large one is brought to size.
    shown = "none" if max(height, width) <= FEW_PIXELS else "auto"
    place: dict[str, Any] = {"extent": (0, width, height, 0), "aspect": "auto", "interpolation": shown}
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, **place)
    _bare(axes)


def show_map(axes: Axes, attention: Array, scale: Normalize, colormap: str) -> None:
    """Draw the weights as they are, one square per patch."""
    axes.imshow(attention, cmap=colormap, norm=scale, interpolation="none", aspect="auto")
    _bare(axes)


def show_overlay(axes: Axes, image: Array, attention: Array, scale: Normalize, colormap: str) -> None:
    """Draw the weights, interpolated between the centres of the patches, over the image.

    Opacity grows with the weight, so that what is little attended to stays recognisable.
    """
    show_image(axes, image)
    clear, opaque = OVERLAY_OPACITY
    share = np.clip(attention / (scale.vmax or 1.0), 0, 1)
    axes.imshow(
        attention,
        cmap=colormap,
        norm=scale,
        interpolation="bilinear",
        alpha=clear + (opaque - clear) * share,
        extent=axes.images[0].get_extent(),
        aspect="auto",
    )


def common_scale(maps: Sequence[Array]) -> tuple[Normalize, Extend]:
    """From 0 to the largest weight of the first of `maps`, and "max" if another goes beyond.

    The largest of all would let one spike of a broken recipe turn the reference dark.
    """
    largest = float(maps[0].max()) or 1.0
    return Normalize(0, largest), "max" if max(each.max() for each in maps) > largest else "neither"


def colour_bar(
    axes: Axes,
    scale: Normalize,
    extend: Extend,
    colormap: str,
    orientation: Literal["vertical", "horizontal"],
) -> None:
    largest = scale.vmax or 1.0
    bar = axes.figure.colorbar(
        ScalarMappable(scale, colormap),
        cax=axes,
        orientation=orientation,
        ticks=[0, largest],
        extend=extend,
        extendfrac=0.08,
    )
    bar.set_ticklabels(["0", f"{largest:.2g}"])
    bar.ax.tick_params(length=2, pad=2, labelsize=7)
    bar.outline.set_visible(False)
    if orientation == "horizontal":
        zero, end = bar.ax.get_xticklabels()
        zero.set_horizontalalignment("left")
        end.set_horizontalalignment("right")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
