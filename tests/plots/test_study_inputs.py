"""The figures of the layers' inputs and of their errors, from tables of two blocks."""

from __future__ import annotations

from pathlib import Path

import committed
import pandas as pd
import pytest

from ptq2themoon.plots.activations import activations, activations_block, of_block
from ptq2themoon.plots.input_error_figures import error_histograms, errors_average, errors_by_block

NAMES = ("activations_largest", "errors", "errors_average", "error_histograms")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Blocks 0 and 1 of the demo's own; channels are in git for one block, which stands for both."""
    found = {name: committed.table(f"results/example/demo/study/{name}.csv") for name in NAMES}
    channels = committed.table("results/example/demo/study/activations_block.csv")
    found["activations"] = pd.concat([channels.assign(block=block) for block in (0, 1)], ignore_index=True)
    return {name: t[t["block"] < 2] if "block" in t else t for name, t in found.items()}


@pytest.fixture
def files(tables: dict[str, pd.DataFrame], tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    return paths


def test_the_spread_of_ranges_and_its_farthest_channel(tables: dict[str, pd.DataFrame]) -> None:
    channels, largest = tables["activations"], tables["activations_largest"]
    figure = activations(channels, largest)
    rows = channels[(channels["layer"] == "fc2") & (channels["block"] == 1)]
    median = (rows["maximum"] - rows["minimum"]).median()
    of_all = largest[(largest["layer"] == "fc2") & (largest["tokens"] == "all")].set_index("block")
    line, points = figure.axes[3].lines
    assert line.get_ydata().tolist() == [median, median]
    assert points.get_ydata().tolist() == of_all.loc[[0, 1], "range"].tolist()
    (said,) = (text.get_text() for text in figure.axes[3].texts)
    top = of_all.loc[of_all["range"].idxmax()]
    assert said == f"channel {top['channel']:.0f}\n{top['range'] / median:.1f} × median"
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


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


def test_both_histograms_stand_in_one_panel(tables: dict[str, pd.DataFrame]) -> None:
    histograms = tables["error_histograms"]
    axes = error_histograms(histograms).axes[3]
    assert axes.texts[0].get_text() == "5.71 → 1.64 %"
    rows = histograms[(histograms["layer"] == "fc2") & (histograms["block"] == 0)]
    drawn = [stairs.get_data().values.tolist() for stairs in axes.patches]
    assert drawn == [
        rows.loc[rows["quantizer"] == f"per {way}", "channels"].tolist() for way in ("tensor", "channel")
    ]
    assert [stairs.get_fill() for stairs in axes.patches] == [True, False]


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
        errors += ["--out-histograms", *out("histograms", "png", "svg")]
        for name, arguments in (("plot_study_activations", ranges), ("plot_study_errors", errors)):
            done = script(f"{name}.py", *arguments)
            assert (done.returncode, done.stderr) == (0, "")
        written = (tmp_path / folder).iterdir()
        return {path.name: path.read_bytes() for path in written if "sidecar" not in path.name}

    first = made("a")
    assert len(first) == 11
    assert made("b") == first


def test_a_block_that_is_not_there_is_refused(files: dict[str, Path], tmp_path: Path, refusal) -> None:
    arguments = ["--channels", files["activations"], "--largest", files["activations_largest"], "--block", 7]
    for name in ("--out-png", "--out-svg", "--out-block", "--out-block-png", "--out-block-svg"):
        arguments += [name, tmp_path / name.strip("-")]
    said = refusal("plot_study_activations.py", *arguments)
    assert said == "error: study.block 7: the model has 2 blocks; nearest valid: 1"
