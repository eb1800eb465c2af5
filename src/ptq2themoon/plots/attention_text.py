"""What the attention figures say: whose attention, what colours and notes mean, classes by name."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from ptq2themoon.evaluate.attention_maps import AttentionMaps
from ptq2themoon.evaluate.attention_query import CLASS_TOKEN, ROLLOUT
from ptq2themoon.plots.canvas import Canvas
from ptq2themoon.plots.heatmap import show_image
from ptq2themoon.plots.style import GREY, display_name
from ptq2themoon.vocabulary.errors import printable

# Inches.
LINE = 0.135
CHARACTER = 0.0625  # of NOTE_SIZE, measured generously
NOTE_SIZE = 7.5


def title(maps: AttentionMaps) -> str:
    """The figure's title: whose attention or rollout it shows, and of which blocks."""
    own = maps.query == CLASS_TOKEN
    whose = f"{maps.measure} of the class token" if own else f"mean {maps.measure} of all tokens"
    blocks = "blocks" if maps.measure == ROLLOUT else "block"
    return f"{whose[0].upper()}{whose[1:]} to the patches, {blocks} {maps.block}"


def remarks(maps: AttentionMaps, width: float) -> list[str]:
    """What is treated as class token and what is averaged, in lines for `width` inches."""
    note = maps.note.strip()
    parts = [f"{note[0].upper()}{note[1:].removesuffix('.')}."] if note else []
    if maps.groups > 1 and maps.is_map:
        parts.append(f"Mean over {maps.groups} groups of tokens that attend apart.")
    return wrapped(" ".join(parts), width)


def key(maps: Mapping[str, AttentionMaps], scaled: str) -> str:
    """What colours and notes mean; `scaled` is what has a colour scale of its own."""
    reference, measure = display_name(next(iter(maps))), next(iter(maps.values())).measure
    colour = f"Colour: {measure} weight; each {scaled}'s scale ends at {reference}'s largest"
    return f"{colour} (arrow: exceeded). cos: cosine similarity with {reference}'s map."


def wrapped(text: str, width: float) -> list[str]:
    """Lines of NOTE_SIZE for `width` inches."""
    return textwrap.wrap(text, max(int(width / CHARACTER), 20))


def write_lines(canvas: Canvas, x: float, y: float, lines: Sequence[str]) -> None:
    """Small grey lines, the first centred on `y`."""
    for number, line in enumerate(lines):
        canvas.text(x, y + number * LINE, line, fontsize=NOTE_SIZE, color=GREY, va="center")


def show_original(
    canvas: Canvas,
    maps: AttentionMaps,
    index: int,
    names: Sequence[str] | None,
    position: tuple[float, float, float],
) -> None:
    """An image at `position` (x, y, width), headed "original", its class below."""
    x, y, width = position
    height = width * aspect(maps)
    canvas.text(x + width / 2, y - 0.1, "original", ha="center", va="baseline")
    show_image(canvas.axes(x, y, width, height, "original"), maps.images[index])
    name = short(class_name(maps, index, names), 18)
    canvas.text(x + width / 2, y + height + 0.06, name, ha="center", va="top")


def show_row_image(
    canvas: Canvas,
    maps: AttentionMaps,
    row: int,
    names: Sequence[str] | None,
    position: tuple[float, float, float, float],
) -> None:
    """An image at `position` (x of its class's name, x, y, width), the name upright beside it."""
    beside, x, y, width = position
    height = width * aspect(maps)
    name = short(class_name(maps, row, names), 18)
    canvas.text(beside, y + height / 2, name, rotation=90, ha="center", va="center")
    show_image(canvas.axes(x, y, width, height, f"original:{row}"), maps.images[row])


def class_name(maps: AttentionMaps, index: int, names: Sequence[str] | None) -> str:
    """The model's name for it, else that of its folder, unless this is but a number."""
    label, folder = maps.labels[index], maps.names[index] if maps.names else ""
    if 0 <= label < len(names or []):
        return (names or [])[label]
    if folder and not folder.isdecimal():
        return folder
    return f"image {index}" if label < 0 else f"class {label}"


def short(name: str, width: int) -> str:
    """The first of a class's synonyms, on at most two lines of about `width` characters, as plain text.

    A dollar sign would begin a formula, which matplotlib may not understand.
    """
    name = printable(name).replace("$", r"\$")
    first, *rest = textwrap.wrap(name.split(",")[0], width) or [""]
    return "\n".join([first, textwrap.shorten(" ".join(rest), width, placeholder=" …")] if rest else [first])


def aspect(maps: AttentionMaps) -> float:
    """Height of the images over their width."""
    height, width = maps.images.shape[2:]
    return float(height / width)
