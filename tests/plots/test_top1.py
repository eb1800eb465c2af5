from __future__ import annotations

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ptq2themoon.plots.output_error import output_error
from ptq2themoon.plots.style import save
from ptq2themoon.plots.summary_rows import COLUMNS
from ptq2themoon.plots.top1 import LARGEST_DROP, has_accuracy, paired_half_width, top1, wilson_interval
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError


def summary(top1_of: dict[str, float], model: str = "demo", seeds: tuple[int, ...] = (0,)) -> pd.DataFrame:
    rows = [(model, "fp32", "fp32", None, None, 2000, 92.65, 100.0, None, None)]
    rows += [
        (model, recipe, "w8a8", 256, seed, 2000, value - seed, 99.0, 28.5, 0.9991)
        for seed in seeds
        for recipe, value in top1_of.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


RECIPES = {"vanilla": 12.3, "layernorm": 91.9, "customized": 92.7}


@pytest.mark.parametrize(
    ("percent", "images", "low", "high"),
    # statsmodels' proportion_confint(…, method="wilson")
    [(50, 100, 40.383153, 59.616847), (0, 10, 0, 27.753280), (100, 10, 72.246720, 100)],
)
def test_wilson_interval(percent: float, images: int, low: float, high: float) -> None:
    assert wilson_interval(percent, images) == pytest.approx((low, high), abs=1e-4)


def test_bars_carry_the_numbers_and_start_at_zero() -> None:
    bars = top1(summary(RECIPES), "demo").axes[0]
    assert [bar.get_width() for bar in bars.patches] == [92.65, 12.3, 91.9, 92.7]
    assert {bar.get_x() for bar in bars.patches} == {0}
    assert [text.get_text() for text in bars.texts] == ["92.65", "12.30", "91.90", "92.70"]
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels == ["FP32", "vanilla  W8A8", "layernorm  W8A8", "customized  W8A8"]
    assert "n = 2,000 images" in bars.get_xlabel()
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars.patches}) == 4


def test_whiskers_are_wilson_intervals() -> None:
    bars = top1(summary(RECIPES), "demo").axes[0]
    ends = [tuple(segment[:, 0]) for whisker in bars.collections for segment in whisker.get_segments()]
    assert ends == [pytest.approx(wilson_interval(value, 2000)) for value in (92.65, 12.3, 91.9, 92.7)]


def test_whiskers_of_differences_are_paired_and_no_shorter_than_the_images_would_give() -> None:
    """Of 2,000 images 20 changed their class; 8 of these were right before, 6 are now."""
    assert paired_half_width(-0.1, 99.0, 2000) == pytest.approx(
        100 * 1.959964 * sqrt(0.01 - 1e-6) / sqrt(2000)
    )
    of_images = 100 * 1.959964 * sqrt(14 - 2**2 / 2000) / 2000
    assert of_images < paired_half_width(-0.1, 99.0, 2000) < 100 * 1.959964 * sqrt(0.09 * 0.91 / 2000)
    assert paired_half_width(0.0, 100.0, 2000) == 0
    assert paired_half_width(-5.0, 99.0, 2000) > 0  # a table that contradicts itself is drawn all the same
    differences = top1(summary({"layernorm": 91.9}), "demo").axes[1]
    (ends,) = [segment[:, 0] for whisker in differences.collections for segment in whisker.get_segments()]
    assert (ends[1] - ends[0]) / 2 == pytest.approx(paired_half_width(-0.75, 99.0, 2000))


def test_difference_beyond_the_axis_is_a_triangle_with_its_number() -> None:
    axes = top1(summary(RECIPES), "demo").axes[1]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.00", "\N{MINUS SIGN}80.35", "\N{MINUS SIGN}0.75", "+0.05"]
    assert axes.get_xlim()[0] == -LARGEST_DROP
    (triangle,) = [line for line in axes.lines if line.get_marker() == "<"]
    assert triangle.get_xdata() == pytest.approx([-LARGEST_DROP])
    assert "triangles" in axes.get_xlabel()
    points = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in "os^"]
    assert points == pytest.approx([0, -0.75, 0.05])


def test_seeds_are_told_apart_only_where_there_are_several() -> None:
    figure = top1(summary({"vanilla": 90.0}, seeds=(0, 1)), "demo")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["FP32", "vanilla  W8A8  seed 0", "vanilla  W8A8  seed 1"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [92.65, 90.0, 89.0]


def test_nothing_lies_outside_the_figure(inside: Callable[[Figure], bool]) -> None:
    assert inside(top1(summary({"a_recipe_with_a_very_long_name_indeed": 50.0, "b": 92.0}), "demo"))


def test_a_summary_without_full_precision_is_refused() -> None:
    with pytest.raises(UserError, match="0 rows of recipe 'fp32'"):
        top1(summary(RECIPES).iloc[1:], "demo")


def test_impossible_accuracy_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe vanilla: top1 101\.0 of 2000 images"):
        top1(summary({"vanilla": 101.0}), "demo")


def test_script_writes_the_same_bytes_as_any_other_process(tmp_path: Path, script) -> None:
    table, png, svg = tmp_path / "summary.csv", tmp_path / "a" / "top1.png", tmp_path / "a" / "top1.svg"
    summary(RECIPES).to_csv(table, index=False)
    options = ["--summary", table, "--model", "demo", "--dpi", 80, "--out-png", png, "--out-svg", svg]
    done = script("plot_top1.py", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "a" / "top1.png.sidecar.json").read_text())["parameters"] == {
        "model": "demo",
        "dpi": 80,
    }
    again = [tmp_path / "b.png", tmp_path / "b.svg"]
    with Stage("plot", inputs=[], outputs=again, parameters={}) as stage:
        save(top1(summary(RECIPES), "demo"), stage, *again, 80)
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


def test_script_names_the_nearest_model(tmp_path: Path, refusal) -> None:
    table = tmp_path / "summary.csv"
    summary(RECIPES).to_csv(table, index=False)
    out = ["--out-png", tmp_path / "top1.png", "--out-svg", tmp_path / "top1.svg"]
    line = refusal("plot_top1.py", "--summary", table, "--model", "dmeo", *out)
    assert line == "error: --model dmeo: not in the summary; did you mean 'demo'?"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


# Without accuracy ---------------------------------------------------------------------------------


def without_accuracy(model: str = "features") -> pd.DataFrame:
    """Good, worse than its own noise, and equal to FP32 to the bit."""
    table = summary(RECIPES, model)
    table["top1"] = None
    table["logits_sqnr_db"] = [None, 28.5, -3.25, None]
    table["output_cosine"] = [None, 0.99931, 0.41, 1.0]
    return table


def test_a_model_without_top1_is_told_from_others_in_one_summary() -> None:
    table = pd.concat([summary(RECIPES), without_accuracy()], ignore_index=True)
    assert has_accuracy(table, "demo")
    assert not has_accuracy(table, "features")
    assert len(top1(table, "demo").axes[0].patches) == 4
    assert "no top-1" in output_error(table, "features").get_suptitle()


def test_output_error_carries_the_numbers() -> None:
    figure = output_error(without_accuracy(), "features")
    bars, cosines = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [28.5, -3.25]
    assert [text.get_text() for text in bars.texts] == ["28.50", "\N{MINUS SIGN}3.25", "no error"]
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "vanilla  W8A8", "layernorm  W8A8", "customized  W8A8"
    ]  # fmt: skip
    points = {line.get_marker(): line.get_xdata() for line in cosines.lines if line.get_marker() != "None"}
    assert [float(x[0]) for x in points.values()] == [0.99931, 0.41, 1.0]
    assert [text.get_text() for text in cosines.texts] == ["0.9993", "0.4100", "1.0000"]
    assert "(dB)" in bars.get_xlabel()
    assert "cosine similarity" in cosines.get_xlabel()


def test_output_error_lies_inside_the_figure(inside: Callable[[Figure], bool]) -> None:
    table = without_accuracy()
    assert inside(output_error(table, "features"))
    table["recipe"] = table["recipe"].replace("vanilla", "a_recipe_with_a_very_long_name_indeed")
    assert inside(output_error(table, "features"))


def test_some_rows_without_top1_are_refused() -> None:
    table = summary(RECIPES)
    table.loc[2, "top1"] = None
    with pytest.raises(UserError, match="recipe layernorm: top1 nan of 2000 images"):
        top1(table, "demo")


def test_script_draws_the_output_error_under_the_same_name(tmp_path: Path, script) -> None:
    table = tmp_path / "summary.csv"
    pd.concat([summary(RECIPES), without_accuracy()]).to_csv(table, index=False)
    done = script(
        "plot_top1.py", "--summary", table, "--model", "features", "--dpi", 60,
        "--out-png", tmp_path / "a" / "top1.png", "--out-svg", tmp_path / "a" / "top1.svg",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    again = [tmp_path / "b.png", tmp_path / "b.svg"]
    with Stage("plot", inputs=[], outputs=again, parameters={}) as stage:
        save(output_error(without_accuracy(), "features"), stage, *again, 60)
    assert again[0].read_bytes() == (tmp_path / "a" / "top1.png").read_bytes()
