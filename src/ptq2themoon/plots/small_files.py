"""Figures as small files that look the same: short numbers in an SVG, a palette in a PNG."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

DECIMALS = 2  # of a coordinate in an SVG, in points: a hundredth is below what 1200 dpi shows
COLOURS = 256  # of a palette
# Of a pixel's channel, from 0 to 255, between all colours and the palette: mean, and the largest of 99.9 %.
UNSEEN = (1.0, 16)

_PLACES = re.compile(r' (?:d|x|y|x1|y1|x2|y2|width|height|points)="[^"]*"|translate\([^)]*\)')
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
_COORDINATES = re.compile(r"\s+")
# A group of uses that all have one style, as the markers of a line.
_MARKERS = re.compile(r'<g([^>]*)>\n(<use [^>]*?( style="[^"]*")/>\n(?:<use [^>]*?\3/>\n)+)</g>')


def small_svg(text: str) -> str:
    """The same drawing: coordinates of `DECIMALS` decimals, no indentation, the style of markers once."""
    text = _PLACES.sub(lambda found: _COORDINATES.sub(" ", _NUMBER.sub(_short, found[0])), text)
    text = re.sub(r"^ +", "", text, flags=re.M)
    return _MARKERS.sub(lambda found: f"<g{found[1]}{found[3]}>\n{found[2].replace(found[3], '')}</g>", text)


def _short(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def small_png(content: bytes) -> bytes:
    """The same picture with a palette, or as it is where an eye could see the difference."""
    image = Image.open(io.BytesIO(content))
    plain = image.convert("RGB")
    reduced = plain.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    alike, written = is_alike(plain, reduced.convert("RGB")), io.BytesIO()
    (reduced if alike else plain).save(written, "PNG", optimize=True, dpi=image.info["dpi"])
    return written.getvalue()


def is_alike(first: Image.Image, second: Image.Image) -> bool:
    """Whether no pixel, but for one in a thousand, differs by more than an eye sees (`UNSEEN`)."""
    distance = np.abs(np.asarray(first, dtype=np.int16) - np.asarray(second, dtype=np.int16))
    mean, most = UNSEEN
    return bool(distance.mean() <= mean and np.quantile(distance.max(axis=2), 0.999) <= most)
