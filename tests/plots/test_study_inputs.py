"""The figures of the layers' inputs and of their errors, from tables of two blocks."""

from __future__ import annotations

from pathlib import Path

import committed
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ptq2themoon.plots.activations import activations, activations_block, of_block
from ptq2themoon.plots.input_error_figures import error_histograms, errors_average, errors_by_block

NAMES = ("activations", "activations_largest", "errors", "errors_average", "error_histograms")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Blocks 0 and 1 of the demo's own."""
    found = {name: committed.table(f"results/demo/study/{name}.csv") for name in NAMES}
    return {name: t[t["block"] < 2] if "block" in t else t for name, t in found.items()}


@pytest.fixture
def files(tables: dict[str, pd.DataFrame], tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    return paths


def test_the_page_names_the_largest_range_of_each_panel(tables: dict[str, pd.DataFrame]) -> None:
    figure = activations(tables["activations"], tables["activations_largest"])
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(said) == 8
    assert said[3] == "largest range 9.31 (channel 254)"
    limits = [{figure.axes[row * 4 + column].get_ylim() for row in (0, 1)} for column in range(4)]
    assert {len(of_layer) for of_layer in limits} == {1}


def test_a_block_may_count_from_the_end(tables: dict[str, pd.DataFrame]) -> None:
    rows = of_block(tables["activations"], -1)
    assert set(rows["block"]) == {1}
    figure = activations_block(rows, tables["activations_largest"])
    fc2 = rows[rows["layer"] == "fc2"]
    top, bottom, _ = figure.axes[-4].lines
    assert top.get_ydata().tolist() == fc2["maximum"].tolist()
    assert bottom.get_ydata().tolist() == fc2["minimum"].tolist()
    assert top.get_linestyle() != bottom.get_linestyle()


def test_lines_and_bars_carry_the_numbers_and_differ_in_more_than_colour(
    tables: dict[str, pd.DataFrame],
) -> None:
    errors = tables["errors"]
    lines = errors_by_block(errors).axes[3].lines
    fc2 = errors[(errors["layer"] == "fc2") & (errors["quantizer"] == "per tensor")]
    assert lines[0].get_ydata().tolist() == fc2.loc[fc2["tokens"] == "class", "mse"].tolist()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 4
    bars = errors_average(tables["errors_average"]).axes[1]
    assert [text.get_text() for text in bars.texts[3:8:4]] == ["5.88", "5.92"]
    assert len({(bar.get_hatch(), bar.get_edgecolor()) for bar in bars.patches}) == 4


def test_both_histograms_have_the_same_axes(tables: dict[str, pd.DataFrame]) -> None:
    def axes(figure: Figure) -> list[tuple[object, ...]]:
        return [(*each.get_xlim(), *each.get_ylim()) for each in figure.axes]

    one, other = (error_histograms(tables["error_histograms"], f"per {way}") for way in ("tensor", "channel"))
    assert axes(one) == axes(other)
    assert one.axes[3].texts[0].get_text() == "median 5.71 %"
    assert other.axes[3].texts[0].get_text() == "median 1.64 %"


@pytest.mark.slow
def test_scripts_write_the_same_bytes_again(files: dict[str, Path], tmp_path: Path, script) -> None:
    def made(folder: str) -> dict[str, bytes]:
        def out(name: str, *kinds: str) -> list[Path]:
            return [tmp_path / folder / f"{name}.{kind}" for kind in kinds]

        block, block_png, block_svg = out("block", "csv", "png", "svg")
        png, svg = out("all", "png", "svg")
        ranges = ["--channels", files["activations"], "--largest", files["activations_largest"]]
        ranges += ["--block", 1, "--dpi", 50, "--out-png", png, "--out-svg", svg, "--out-block", block]
        ranges += ["--out-block-png", block_png, "--out-block-svg", block_svg]
        errors = ["--errors", files["errors"], "--average", files["errors_average"], "--dpi", 50]
        errors += ["--histograms", files["error_histograms"], "--out", *out("errors", "png", "svg")]
        errors += ["--out-average", *out("average", "png", "svg")]
        errors += ["--out-per-tensor", *out("tensor", "csv", "png", "svg")]
        errors += ["--out-per-channel", *out("channel", "csv", "png", "svg")]
        for name, arguments in (("plot_study_activations", ranges), ("plot_study_errors", errors)):
            done = script(f"{name}.py", *arguments)
            assert (done.returncode, done.stderr) == (0, "")
        written = (tmp_path / folder).iterdir()
        return {path.name: path.read_bytes() for path in written if "sidecar" not in path.name}

    first = made("a")
    assert len(first) == 15
    assert made("b") == first


def test_a_block_that_is_not_there_is_refused(files: dict[str, Path], tmp_path: Path, refusal) -> None:
    arguments = ["--channels", files["activations"], "--largest", files["activations_largest"], "--block", 7]
    for name in ("--out-png", "--out-svg", "--out-block", "--out-block-png", "--out-block-svg"):
        arguments += [name, tmp_path / name.strip("-")]
    said = refusal("plot_study_activations.py", *arguments)
    assert said == "error: study.block 7: the model has 2 blocks; nearest valid: 1"
