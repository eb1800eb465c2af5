from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from ptq2themoon.plots.style import check_dpi, save, series, styled
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError


@styled
def line() -> Figure:
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], label="a")
    axes.imshow([[0, 1], [1, 0]], interpolation="nearest")
    axes.legend()
    return figure


def saved(folder: Path) -> tuple[bytes, bytes]:
    png, svg = folder / "figure.png", folder / "figure.svg"
    with Stage("plot", inputs=[], outputs=[png, svg], parameters={}) as stage:
        save(line(), stage, png, svg, 100)
    return png.read_bytes(), svg.read_bytes()


def test_same_bytes_whatever_the_users_matplotlibrc(tmp_path: Path) -> None:
    first = saved(tmp_path / "a")
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": "x", "savefig.dpi": 30}
    ):
        second = saved(tmp_path / "b")
    assert first == second


def test_no_date_and_no_version_in_the_files(tmp_path: Path) -> None:
    png, svg = saved(tmp_path)
    assert b"Software" not in png
    assert b"dc:date" not in svg
    assert matplotlib.__version__.encode() not in svg


def test_drawing_leaves_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    line()
    assert dict(matplotlib.rcParams) == before


def test_no_two_recipes_share_colour_marker_and_hatch() -> None:
    looks = [series(index) for index in range(56)]
    assert len(set(looks)) == 56
    assert len({look.colour for look in looks[:7]}) == 7
    assert len({look.marker for look in looks[:7]}) == len({look.hatch for look in looks[:7]}) == 7


@pytest.mark.parametrize("dpi", [0, -5, 49, 5000])
def test_senseless_dpi_is_refused(dpi: int) -> None:
    with pytest.raises(UserError, match=f"--dpi {dpi}: must lie between 50 and 1200"):
        check_dpi(dpi)
