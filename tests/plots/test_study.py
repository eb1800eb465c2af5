"""Figures of the ablation, the ranking and all models: every number is the table's, nothing is clipped."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import committed
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from ptq2themoon.plots.ablation_bars import ablation
from ptq2themoon.plots.fusion_times import SECONDS, fusion_published
from ptq2themoon.plots.input_error_figures import as_printed, errors_by_block
from ptq2themoon.plots.models import models
from ptq2themoon.plots.ranking import ranking
from ptq2themoon.study.model_table import ONCE, PLAIN, model_rows
from ptq2themoon.study.names import READ_AS, ROWS

ROOT = Path(__file__).parents[2]
PUBLISHED = pd.read_csv(ROOT / "resources/study/ablation.csv")
RECIPES = ["vanilla", "layernorm", "layernorm_all_activations", "mine", "auto", "fp32"]


def means(**changes: object) -> pd.DataFrame:
    """Two bits of each recipe, full precision last."""
    count = len(RECIPES)
    table = pd.DataFrame(
        {
            "recipe": RECIPES * 2,
            "bits": ["w8a8"] * count + ["w4a4"] * count,
            "seeds": 3,
            "images": 1234,
            "top1": np.linspace(91.234, 7.899, 2 * count),
            "agreement": np.linspace(99.1, 30.3, 2 * count),
            "output_cosine": np.linspace(0.9991, 0.4321, 2 * count),
        }
    )
    for name in ("top1", "agreement", "output_cosine"):
        table[f"{name}_std"] = 0.01 * table[name]
    known = PUBLISHED.set_index("recipe")["top1"]
    return table.assign(published_top1=table["recipe"].map(known), **changes)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def drawn(table: pd.DataFrame) -> Figure:
    return ablation(table, f"What tiny needs\n{READ_AS['once']}")


# Ablation -------------------------------------------------------------------------------------------


def test_every_bar_of_the_ablation_is_a_number_of_the_table(inside: Callable[[Figure], bool]) -> None:
    table, figure = means(), drawn(means())
    assert inside(figure)
    wide, narrow, theirs = figure.axes
    for axes, bits in ((wide, "w8a8"), (narrow, "w4a4")):
        expected = table[table["bits"] == bits]["top1"].tolist()
        assert [bar.get_width() for bar in axes.patches] == expected
        assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in expected]
        assert bits.upper() in axes.get_title(loc="left")
    published = table[table["bits"] == "w8a8"]["published_top1"].dropna().tolist()
    assert [bar.get_width() for bar in theirs.patches] == published
    assert "published" in theirs.get_title(loc="left")


def test_rows_that_lie_close_are_points_of_their_differences(inside: Callable[[Figure], bool]) -> None:
    table = means()
    close = [90.0, 90.1, 90.2, 89.9, 90.5, 90.25]
    table.loc[table["bits"] == "w8a8", "top1"] = close
    figure = drawn(table)
    assert inside(figure)
    wide, narrow, _ = figure.axes
    assert (len(wide.patches), len(narrow.patches)) == (0, len(RECIPES))
    assert [bars.lines[0].get_xdata()[0] for bars in wide.containers] == pytest.approx(
        [x - 90.25 for x in close]
    )
    assert [text.get_text() for text in wide.texts][:2] == ["\N{MINUS SIGN}0.25", "\N{MINUS SIGN}0.15"]
    assert "less FP32's" in wide.get_xlabel()


def test_rows_are_called_by_what_they_quantize_per_channel() -> None:
    names = [label.get_text() for label in drawn(means()).axes[0].get_yticklabels()]
    only_activations = ROWS["layernorm_all_activations"]
    assert names == ["nothing", "LayerNorm", only_activations, "mine", ROWS["auto"], ROWS["fp32"]]


def test_a_row_that_the_other_side_lacks_is_said_to_be_missing() -> None:
    assert [text.get_text() for text in drawn(means()).axes[2].texts].count("not in the study") == 3


@pytest.mark.parametrize(
    ("column", "factor", "axis"), [("agreement", 1, "agreement"), ("output_cosine", 100, "cosine")]
)
def test_without_top1_another_measure_is_drawn_and_named(column: str, factor: float, axis: str) -> None:
    gone = {"top1": np.nan} if column == "agreement" else {"top1": np.nan, "agreement": np.nan}
    table = means(**gone)
    axes = drawn(table).axes[0]
    expected = factor * table[column][: len(RECIPES)]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected.tolist())
    assert axis in axes.get_xlabel()


def test_one_seed_has_no_whiskers(inside: Callable[[Figure], bool]) -> None:
    figure = drawn(means(top1_std=np.nan, seeds=1))
    assert inside(figure)
    bars = [one for axes in figure.axes for one in axes.containers]
    assert not [one for one in bars if isinstance(one, ErrorbarContainer)]


# Ranking --------------------------------------------------------------------------------------------


def sites() -> pd.DataFrame:
    rows = [(role, block) for role in ("norm1", "fc1", "fc2") for block in range(12)] + [("norm", None)]
    gains = np.linspace(0.02, -0.003, len(rows))
    return pd.DataFrame(
        {
            "rank": range(1, len(rows) + 1),
            "role": [role for role, _ in rows],
            "block": pd.array([block for _, block in rows], dtype="Int64"),
            "nsr_per_tensor": 0.03,
            "nsr_per_channel": 0.03 - gains,
            "gain": gains,
            "range_largest": np.geomspace(1, 50, len(rows)),
            "chosen": [number in (0, 3) for number in range(len(rows))],
        }
    )


def search() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "tried": ["none", "all with a gain", "first 8", "first 4", "without fc1 · 2"],
            "sites": [0, 30, 8, 4, 3],
            "error": [0.3, 0.1, 0.105, 0.14, 0.118],
            "share": [0, 1, 0.975, 0.8, 0.91],
        }
    )


def test_the_ranking_is_drawn_where_it_belongs(inside: Callable[[Figure], bool]) -> None:
    table, figure = sites(), ranking(sites(), search(), "tiny", "w4a4", 0.9)
    assert inside(figure)
    gains, ranges, tried = figure.axes[:3]
    roles = [label.get_text() for label in gains.get_yticklabels()]
    shown = np.asarray(gains.images[0].get_array())
    row = table[(table["role"] == "fc2") & (table["block"] == 7)].iloc[0]
    assert shown[roles.index("fc2"), 7] == row["gain"]
    assert np.asarray(ranges.images[0].get_array())[roles.index("fc2"), 7] == row["range_largest"]
    outside = table[table["role"] == "norm"].iloc[0]
    assert shown[roles.index("norm"), 12] == outside["gain"]
    assert len(gains.patches) == len(ranges.patches) == table["chosen"].sum()
    points = np.concatenate([line.get_xydata() for line in tried.lines if len(line.get_xdata()) != 2])
    assert {tuple(point) for point in points} == set(zip(search()["sites"], search()["error"], strict=True))


def test_losses_are_marked_not_by_colour_alone() -> None:
    said = [text.get_text() for text in ranking(sites(), search(), "tiny", "w4a4", 0.9).axes[0].texts]
    assert said.count("\N{MINUS SIGN}") == (sites()["gain"] < 0).sum()
    assert [text for text in said if text.isdecimal()] == [str(number) for number in range(1, 11)]


# Models ---------------------------------------------------------------------------------------------


def test_every_model_s_numbers_are_drawn(inside: Callable[[Figure], bool]) -> None:
    rows = [
        ("demo", "fp32", "", "fp32", 91.5, np.nan, 0.0),
        ("demo", "w8a8", "as it is", "vanilla", 91.4, 0.1, -0.1),
        ("demo", "w4a4", "as it is", "vanilla", 64.0, 2.0, -27.5),
        ("demo", "w4a4", "once", "auto", 75.0, 1.0, -16.5),
        ("a_long_name_of_a_model", "fp32", "", "fp32", 80.0, np.nan, 0.0),
        ("a_long_name_of_a_model", "w8a8", "as it is", "auto", 81.0, 0.5, 1.0),
    ]
    columns = ["model", "bits", "reading", "recipe", "value", "std", "change"]
    figure = models(pd.DataFrame(rows, columns=columns).assign(measure="top1", images=100))
    assert inside(figure)
    said = texts(figure)
    assert "64.00 (−27.50)" in said
    assert "81.00 (+1.00)" in said
    assert said.count("91.50") == 3  # in each group of its model
    assert "demo, W4A4, once" in said
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [91.5, 91.4, 91.5, 64.0, 91.5, 75.0, 80.0, 81.0]


def test_auto_stands_among_those_that_are_read_as_it_is() -> None:
    """At bits at which the others were read once too; elsewhere beside the plain ones."""
    plain = means().assign(variant="input")
    once = plain[plain["bits"] == "w4a4"].assign(top1=50.0)
    rows = pd.DataFrame(model_rows("demo", plain, once))
    auto = rows[rows["recipe"] == "auto"]
    assert list(zip(auto["bits"], auto["reading"], strict=True)) == [("w8a8", PLAIN), ("w4a4", ONCE)]
    full = rows.loc[0, "value"]
    assert full == plain.loc[plain["recipe"] == "fp32", "top1"].iloc[0]
    assert (rows["change"] == rows["value"] - full).all()


def test_what_the_study_printed_is_drawn_as_ours_is(inside: Callable[[Figure], bool]) -> None:
    printed = pd.read_csv(ROOT / "resources/study/errors_by_block.csv")
    rows = as_printed(printed)
    assert len(rows) == 2 * len(printed)
    row = rows[(rows["layer"] == "fc2") & (rows["block"] == 6) & (rows["tokens"] == "patch")]
    assert dict(zip(row["quantizer"], row["mse"], strict=True)) == {
        "per tensor": 3.46,
        "per channel": 0.00211,
    }
    figure = errors_by_block(rows, "As printed.")
    assert inside(figure)
    assert "As printed." in figure.get_suptitle()
    times = pd.read_csv(ROOT / "resources/study/models.csv")
    figure = fusion_published(times)
    assert inside(figure)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [*times[SECONDS[0]], *times[SECONDS[1]]]


@pytest.mark.parametrize("name", committed.names("results/example/*/study/*.png"))
def test_a_figure_is_readable_on_a_page(name: str) -> None:
    """On A4, upright or across, the smallest letters (7.5 points) are no smaller than 5.5."""
    width, height = (size / 150 for size in Image.open(BytesIO(committed.read(name))).size)
    pages = ((8.27, 11.69), (11.69, 8.27))
    assert max(min(w / width, h / height, 1) for w, h in pages) >= 5.5 / 7.5
