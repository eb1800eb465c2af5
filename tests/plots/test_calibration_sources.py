"""Sources of calibration images: every mean is that of the runs, and every image is in the figure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from ptq2themoon.plots.calibration_sources import Images, data_free
from ptq2themoon.tables import source_means as tables
from ptq2themoon.vocabulary.errors import UserError

BITS = ("w8a8", "w4a4")
SOURCES = {"real": "papers", "generated": "psaq_vit", "noise": "psaq_vit_noise"}


def run(recipe: str, seed: int, **changes: object) -> pd.DataFrame:
    start = list(SOURCES.values()).index(recipe)
    rows = []
    for place, bits in enumerate(BITS):
        figures = (90.0 - start - 5 * place - seed, 95.0 - seed, 40.0 - 10 * start - place, 0.9)
        rows.append((recipe, bits, 32, seed, 500, -9.0 * start + seed, 90.4, *figures))
    return pd.DataFrame(rows, columns=list(tables.COLUMNS)).assign(**changes)


def table(**changes: object) -> pd.DataFrame:
    runs = [run(recipe, seed, **changes) for recipe in SOURCES.values() for seed in range(3)]
    return tables.data_free(runs, SOURCES)


def images(channels: int = 1, count: int = 8, sources: tuple[str, ...] = tuple(SOURCES)) -> dict[str, Images]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 255, (count, channels, 28, 28), np.uint8) for name in sources}


# The table --------------------------------------------------------------------------------------------


def test_a_row_is_the_mean_over_seeds() -> None:
    found = table()
    assert list(found.columns) == list(tables.TABLE)
    assert list(zip(found["source"], found["bits"], strict=True)) == [(s, b) for s in SOURCES for b in BITS]
    row = found[(found["source"] == "noise") & (found["bits"] == "w4a4")].iloc[0]
    assert (row["recipe"], row["seeds"], row["images"], row["calibration_images"]) == (
        "psaq_vit_noise", 3, 500, 32,
    )  # fmt: skip
    assert (row["top1"], row["top1_std"]) == (90.0 - 2 - 5 - 1, 1.0)
    assert (row["entropy"], row["logits_sqnr_db"], row["fp32_top1"]) == (-17.0, 19.0, 90.4)


def test_a_source_that_was_not_run_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^--sources noise=psaq_vit_noise: none of --runs is of this recipe$"
    ):
        tables.data_free([run("papers", 0)], {"real": "papers", "noise": "psaq_vit_noise"})


def test_runs_on_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="measured on different numbers of images"):
        tables.data_free([run("papers", 0), run("papers", 1, images=400)], {"real": "papers"})


# The figure -------------------------------------------------------------------------------------------


def axes_of(figure: Figure, start: str) -> dict[str, object]:
    return {a.get_label(): a for a in figure.axes if str(a.get_label()).startswith(start)}


def test_every_point_is_the_table_s(inside: Callable[[Figure], bool]) -> None:
    rows = table()
    figure = data_free(rows, images(), "demo")
    assert inside(figure)
    panels = axes_of(figure, "panel:")
    assert list(panels) == ["panel:top1", "panel:agreement", "panel:logits_sqnr_db"]
    for label, axes in panels.items():
        column = label.partition(":")[2]
        bars = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]  # type: ignore[attr-defined]
        assert len(bars) == len(SOURCES)
        for source, bar in zip(SOURCES, bars, strict=True):
            own = rows[rows["source"] == source]
            assert bar[0].get_ydata().tolist() == own[column].tolist()
            (whiskers,) = bar[2]
            lengths = [segment[1, 1] - segment[0, 1] for segment in whiskers.get_segments()]
            assert lengths == pytest.approx((2 * own[f"{column}_std"]).tolist())


@pytest.mark.parametrize(("channels", "count"), [(1, 8), (3, 5), (1, 1)])
def test_every_image_is_shown_as_it_is(channels: int, count: int, inside: Callable[[Figure], bool]) -> None:
    given = images(channels, count)
    figure = data_free(table(), given, "demo")
    assert inside(figure)
    for label, axes in axes_of(figure, "images:").items():
        (shown,) = axes.get_images()  # type: ignore[attr-defined]
        mosaic = np.asarray(shown.get_array())
        wanted = given[str(label).partition(":")[2]]
        columns = -(-count // min(2, count))
        for index, image in enumerate(wanted):
            y, x = index // columns * 29, index % columns * 29
            part = mosaic[y : y + 28, x : x + 28]
            assert np.array_equal(part, image[0] if channels == 1 else image.transpose(1, 2, 0))


def test_a_model_of_features_has_its_sqnr_alone(inside: Callable[[Figure], bool]) -> None:
    nothing = {"top1": None, "agreement": None, "fp32_top1": None, "entropy": None}
    figure = data_free(table(**nothing), images(), "demo")
    assert inside(figure)
    assert list(axes_of(figure, "panel:")) == ["panel:logits_sqnr_db"]
    assert not any("entropy" in text.get_text() for text in figure.texts)


def test_images_of_other_sources_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--images are of real, but the table has real, generated, noise$"):
        data_free(table(), images(sources=("real",)), "demo")
