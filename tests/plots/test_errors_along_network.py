from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ptq2themoon.plots.errors_along_network import EDGE, LOW, ROW, errors_along_network, spread
from ptq2themoon.plots.network import MODES, Network
from ptq2themoon.plots.style import GREY, save, series
from ptq2themoon.stage import Stage
from ptq2themoon.vocabulary.errors import UserError

OPERATORS = [("embed", "Conv", "patch_embed", None)]
OPERATORS += [
    (f"{role}_{block}", kind, role, block)
    for block in range(2)
    for role, kind in (("norm1", "LayerNormalization"), ("other", "Reshape"), ("fc2", "PPQBiasFusedMatMul"))
]
OPERATORS += [("classifier", "Gemm", "head", None)]


def table(nsr: list[float], modes: tuple[str, ...] = tuple(MODES)) -> pd.DataFrame:
    """`nsr` in the first mode, ten times as much in the next, …"""
    rows = [
        (*operator, mode, value * 10**i)
        for i, mode in enumerate(modes)
        for operator, value in zip(OPERATORS, nsr, strict=True)
    ]
    return pd.DataFrame(rows, columns=["operator", "type", "role", "block", "mode", "nsr"])


NSR = [1e-4, 2e-4, 0.0, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4]


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}


def names(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_lines_carry_the_first_recipe_and_how_the_others_differ_from_it() -> None:
    half, tenth = ([value / by for value in NSR] for by in (2, 10))
    tables = {"vanilla": table(NSR), "customized": table(half), "ship": table(tenth)}
    panels = errors_along_network(tables).axes
    assert len(panels) == 6
    for i, (level, differences) in enumerate(zip(panels[::2], panels[1::2], strict=True)):
        assert (level.get_yscale(), differences.get_yscale()) == ("log", "linear")
        assert list(lines(level)) == ["vanilla"]
        expected = np.where(np.array(NSR) > 0, np.array(NSR) * 10**i, np.nan)
        np.testing.assert_array_equal(lines(level)["vanilla"], expected)
        assert list(lines(differences)) == ["customized", "ship"]
        for name, change in (("customized", -3.0103), ("ship", -10)):
            np.testing.assert_allclose(
                lines(differences)[name], [change] * 7, atol=1e-4
            )  # not where both are 0


def off_the_scale(axes) -> list[tuple[list[float], str, float]]:
    """Positions, colour and height of each row of triangles."""
    marks = [line for line in axes.lines if line.get_label() == "_off"]
    return [(list(line.get_xdata()), line.get_color(), line.get_ydata()[0]) for line in marks]


def test_what_is_off_the_scale_is_marked_at_the_edges() -> None:
    second, third = [0.0, *NSR[1:]], [*NSR[:2], 3e-4, *NSR[3:]]
    tables = {"a": table(NSR, ("local",)), "b": table(second, ("local",)), "c": table(third, ("local",))}
    level, differences = errors_along_network(tables).axes
    assert off_the_scale(level) == [([2], GREY, LOW)]
    assert off_the_scale(differences) == [
        ([0], series(1).colour, LOW),  # b alone has no noise
        ([2], series(2).colour, pytest.approx(1 - LOW - ROW)),  # a alone has none
    ]


def test_the_legend_names_the_marks_that_are_drawn() -> None:
    def named(*tables: list[float]) -> list[str]:
        by_recipe = {name: table(nsr, ("local",)) for name, nsr in zip("abc", tables, strict=False)}
        figure = errors_along_network(by_recipe)
        return [text.get_text() for text in figure.legends[0].get_texts()]

    some = [1e-3] * len(NSR)
    assert named(some, some) == ["a", "b"]
    assert named(some, [0.0, *some[1:]]) == ["a", "b", "NSR = 0, off the scale"]
    assert named([0.0, *some[1:]], some)[2:] == ["NSR = 0, off the scale", "NSR = 0 with a alone"]


def test_worst_operators_are_named_by_role_and_block() -> None:
    (axes,) = errors_along_network({"vanilla": table(NSR, ("local",))}, worst=3).axes
    assert names(axes) == ["Reshape · 1", "fc2 · 1", "head"]
    (axes,) = errors_along_network({"vanilla": table(NSR, ("local",))}, worst=0).axes
    assert names(axes) == []


def test_the_highest_nsr_of_the_first_recipe_is_the_worst() -> None:
    spiked = [*NSR[:3], 0.5, *NSR[4:]]
    tables = {"a": table(spiked, ("local",)), "b": table([*NSR[:-1], 0.9], ("local",))}
    level, differences = errors_along_network(tables, worst=1).axes
    assert names(level) == ["fc2 · 0"]
    assert level.texts[0].xy == (3, 0.5)
    assert names(differences) == []


def test_blocks_and_titles() -> None:
    figure = errors_along_network({"vanilla": table(NSR)}, {"local": 64})
    assert [axes.get_title(loc="left").count("(64 images)") for axes in figure.axes] == [0, 1, 0]
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == ["0", "1"]
    assert list(figure.axes[-1].get_xticks()) == [2, 5]
    assert "patch_embed; in every block: norm1, Reshape, fc2; head." in figure.axes[-1].get_xlabel()


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    (axes,) = errors_along_network({"vanilla": table([*NSR[:6], np.inf, np.nan], ("local",))}).axes
    assert len(lines(axes)["vanilla"]) == 6
    assert "2 values not finite" in axes.get_title(loc="left")


def test_a_recipe_may_lack_operators_of_another() -> None:
    short = table(NSR, ("local",)).iloc[:-1]
    for tables in (
        {"partial": short, "vanilla": table(NSR, ("local",))},
        {"vanilla": table(NSR, ("local",)), "partial": short},
    ):
        level, differences = errors_along_network(tables).axes
        (first,), (other,) = lines(level).values(), lines(differences).values()
        assert len(first) == len(tables[next(iter(tables))])
        assert other.tolist() == [0.0] * 6  # of both, and with noise


def test_nothing_lies_outside_the_figure(inside: Callable[[Figure], bool]) -> None:
    tables = {f"a_recipe_with_a_long_name_{i}": table(NSR, ("local",)) for i in range(5)}
    assert inside(errors_along_network(tables))


def test_nothing_but_zeros_still_draws() -> None:
    (axes,) = errors_along_network({"exact": table([0.0] * len(NSR), ("local",))}).axes
    assert np.isnan(lines(axes)["exact"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "locale"}, "--table b: unknown mode 'locale'; did you mean 'local'?"),
        ({"nsr": -1.0}, "--table b: column 'nsr' must hold numbers, 0 or above"),
        ({"operator": "embed"}, "--table b: operator 'embed' has two rows of mode 'local'"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, object], message: str) -> None:
    bad = table(NSR, ("local",))
    for column, value in change.items():
        bad.loc[5, column] = value
    with pytest.raises(UserError) as error:
        errors_along_network({"a": table(NSR, ("local",)), "b": bad})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda rows: rows.assign(operator=rows["operator"] + "'"),
            "--table b: has no operator of the largest",
        ),
        (
            lambda rows: rows[::-1],
            "--table a, b: operators lie in different orders; give tables of one model",
        ),
    ],
)
def test_tables_of_two_models_are_refused(
    other: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    rows = table(NSR, ("local",))
    with pytest.raises(UserError) as error:
        errors_along_network({"a": rows, "b": other(rows)})
    assert message in str(error.value)


def test_each_recipe_may_have_operators_that_the_other_lacks() -> None:
    """In graph order, with the operator that only the shorter table has at its place."""
    rows = table(NSR, ("local",))
    tables = {"products": rows.iloc[[0, 3, 6, 7]], "no head": rows.iloc[:7]}
    assert list(Network.of(tables).operators) == rows["operator"].tolist()
    level, differences = errors_along_network(tables).axes
    (first,), (other,) = lines(level).values(), lines(differences).values()
    assert (len(first), other.tolist()) == (4, [0.0] * 3)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(1, 12)), max_size=6),
)
def test_spread_keeps_names_apart_and_inside(boxes: list[tuple[float, float]]) -> None:
    wanted = sorted(place for place, _ in boxes)
    widths = [width for _, width in boxes]
    places = spread(wanted, widths, (0.0, 100.0))
    for (a, b), (left, right) in zip(pairwise(places), pairwise(widths), strict=True):
        assert b - a >= (left + right) / 2 - 1e-6
    if boxes:
        assert places[0] - widths[0] / 2 >= -1e-6
        assert places[-1] + widths[-1] / 2 <= 100 + 1e-6


def test_spread_leaves_alone_what_is_apart() -> None:
    assert spread([10.0, 50.0, 90.0], [5.0, 5.0, 5.0], (0.0, 100.0)) == pytest.approx([10, 50, 90])
    assert spread([50.0, 50.0], [10.0, 10.0], (0.0, 100.0)) == pytest.approx([45, 55])


def test_script_writes_the_same_bytes_as_any_other_process(tmp_path: Path, script) -> None:
    source, png, svg = (
        tmp_path / "operators.csv",
        tmp_path / "a" / "errors.png",
        tmp_path / "a" / "errors.svg",
    )
    table(NSR, ("local",)).to_csv(source, index=False)
    options = ["--table", f"vanilla={source}", "--mode-images", "local=64", "--dpi", 60]
    done = script("plot_errors.py", *options, "--out-png", png, "--out-svg", svg)
    assert (done.returncode, done.stderr) == (0, "")
    recorded = json.loads((tmp_path / "a" / "errors.png.sidecar.json").read_text())["parameters"]
    assert recorded == {"recipes": ["vanilla"], "mode_images": {"local": 64}, "worst": 3, "dpi": 60}
    again = [tmp_path / "b.png", tmp_path / "b.svg"]
    with Stage("plot", inputs=[], outputs=again, parameters={}) as stage:
        figure = errors_along_network({"vanilla": table(NSR, ("local",))}, {"local": 64})
        save(figure, stage, *again, 60)
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


def test_script_refuses_an_empty_table(tmp_path: Path, refusal) -> None:
    source = tmp_path / "operators.csv"
    source.write_text("operator,type,role,block,mode,nsr\n")
    out = ["--out-png", tmp_path / "e.png", "--out-svg", tmp_path / "e.svg"]
    line = refusal("plot_errors.py", "--table", f"vanilla={source}", *out)
    assert line == f"error: {source}: the table has no rows; run the stage that writes it again"
    assert [path.name for path in tmp_path.iterdir()] == ["operators.csv"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "not a readable CSV table"),
        ("operator,type,role,block,mode,snr\na,b,c,0,local,1\n", [], "no column 'nsr'; did you mean 'snr'?"),
        ("", ["--mode-images", "locl=3"], "unknown mode 'locl'; did you mean 'local'?"),
        ("", ["--mode-images", "local=0"], "must read MODE=N"),
        ("", ["vanilla=other.csv"], "the name 'vanilla' is given twice"),
        ("", ["--table", "other=other.csv"], "--table: given twice; give all its values after one --table"),
        ("", ["--dpi", "5"], "--dpi 5: must lie between 50 and 1200"),
    ],
)
def test_script_refuses(tmp_path: Path, refusal, text: str, options: list[str], message: str) -> None:
    source = tmp_path / "operators.csv"
    source.write_text(text)
    out = ["--out-png", tmp_path / "e.png", "--out-svg", tmp_path / "e.svg"]
    assert message in refusal("plot_errors.py", "--table", f"vanilla={source}", *options, *out)


def convolutional(blocks: int, between: int, role: str | None = None) -> pd.DataFrame:
    """Blocks between operators that have neither role nor block, as in MobileViT; read from CSV."""
    operators = []
    for block in range(blocks):
        operators += [(f"/stages.{block}/conv_{i}/Conv", "Conv", role, None) for i in range(between)]
        operators += [(f"blocks.{block}.{name}", "MatMul", name, block) for name in ("qkv", "fc2")]
        operators += [(f"blocks.{block}.mask", "Add", None, block)]
    rows = [(*operator, "local", 1e-4 * (1 + i)) for i, operator in enumerate(operators)]
    table = pd.DataFrame(rows, columns=["operator", "type", "role", "block", "mode", "nsr"])
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


@pytest.mark.parametrize(("blocks", "between"), [(9, 20), (24, 0), (1, 150), (3, 1)])
def test_operators_without_role_or_block(inside: Callable[[Figure], bool], blocks: int, between: int) -> None:
    figure = errors_along_network({"vanilla": convolutional(blocks, between)})
    assert inside(figure)
    (axes,) = figure.axes
    assert len(axes.get_xticks()) == blocks
    assert names(axes)[-1] == f"Add · {blocks - 1}"


def test_operators_without_role_or_block_go_by_their_names() -> None:
    (axes,) = errors_along_network({"vanilla": convolutional(2, 20).iloc[:-3]}, worst=1).axes
    assert names(axes) == ["/stages.1/conv_19/Conv"]
    label = axes.get_xlabel().replace("\n", " ")
    assert "Operators in graph order: 43 operators, 3 in 1 block, 40 outside." in label


def test_a_network_without_any_block_still_draws(inside: Callable[[Figure], bool]) -> None:
    only = convolutional(1, 30).iloc[:30]
    figure = errors_along_network({"vanilla": only})
    assert inside(figure)
    assert "30 operators, none in a block" in figure.axes[0].get_xlabel().replace("\n", " ")


def test_white_blocks_beside_operators_of_no_block_have_an_edge() -> None:
    (axes,) = errors_along_network({"vanilla": convolutional(2, 2)}).axes
    edges = [float(line.get_xdata()[0]) for line in axes.lines if line.get_color() == EDGE]
    assert edges == [6.5]
