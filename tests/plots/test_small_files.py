"""Figures are written small, and look as before."""

from __future__ import annotations

import io
import re

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ptq2themoon.plots.small_files import is_alike, small_png, small_svg
from ptq2themoon.plots.style import styled


@styled
def drawn(noise: bool = False) -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot(np.linspace(0, 1, 40), np.sin(np.linspace(0, 9, 40)), marker="o", label="a word")
    axes.legend()
    if noise:
        axes.imshow(np.random.default_rng(0).random((120, 120, 3)), aspect="auto")
    return figure


def png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100)
    return written.getvalue()


def test_a_png_of_few_colours_has_a_palette_and_its_size() -> None:
    before = png(drawn())
    after = small_png(before)
    assert len(after) < len(before)
    first, second = (Image.open(io.BytesIO(content)) for content in (before, after))
    assert second.mode == "P"
    assert second.size == first.size
    assert [round(dpi) for dpi in second.info["dpi"]] == [100, 100]
    assert is_alike(first.convert("RGB"), second.convert("RGB"))


def test_a_png_that_a_palette_would_spoil_keeps_its_colours() -> None:
    before = png(drawn(noise=True))
    after = Image.open(io.BytesIO(small_png(before)))
    assert after.mode == "RGB"
    np.testing.assert_array_equal(
        np.asarray(after), np.asarray(Image.open(io.BytesIO(before)).convert("RGB"))
    )


@styled
def written_svg(to: io.StringIO) -> Figure:
    figure = drawn()
    figure.savefig(to, format="svg")
    return figure


def test_an_svg_keeps_its_drawing_its_words_and_a_hundredth_of_a_point() -> None:
    written = io.StringIO()
    written_svg(written)
    before = written.getvalue()
    after = small_svg(before)
    assert len(after) < 0.75 * len(before)
    assert after.count("<use") == before.count("<use")
    assert ">a word</text>" in after
    places = [[float(x) for x in re.findall(r'<use[^>]* x="([^"]+)"', text)] for text in (before, after)]
    np.testing.assert_allclose(*places, atol=0.0051)
    assert small_svg(after) == after


def test_markers_of_one_style_have_it_once() -> None:
    uses = [
        f'<use xlink:href="#m" x="{x}" y="2" style="fill: {colour}"/>'
        for x, colour in ((1.239, "red"), (2, "red"))
    ]
    other = uses[1].replace("red", "blue")
    alike, mixed = (
        "\n".join(['<g clip-path="url(#p)">', *inner, "</g>"]) for inner in (uses, [uses[0], other])
    )
    assert small_svg(alike).splitlines()[:2] == [
        '<g clip-path="url(#p)" style="fill: red">', '<use xlink:href="#m" x="1.24" y="2"/>'
    ]  # fmt: skip
    assert small_svg(mixed).count("style=") == 2
