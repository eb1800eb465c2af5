"""Figures of the leaderboard: every point is the table's, protocols have panels of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from ptq2themoon.plots.accuracy_by_bits import ENLARGED, accuracy_by_bits, in_order, places_of
from ptq2themoon.plots.accuracy_by_cost import COSTS, accuracy_by_cost
from ptq2themoon.plots.accuracy_by_size import SIZED, accuracy_by_size
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import UserError

BITS = ["w8a8", "w6a6", "w4a4", "w3a3", "w4a8"]
RECIPES = {"papers": "products", "finer": "products", "vanilla": "all-operators"}
FP32 = 90.4
PARAMETERS = 5_353_738


def table(**changes: object) -> pd.DataFrame:
    rows: list[dict[str, object]] = [
        {"model": "m", "recipe": "fp32", "bits": "fp32", "images": 500, "top1": FP32}
    ]
    for index, (recipe, protocol) in enumerate(RECIPES.items()):
        for place, bits in enumerate(BITS):
            value = FP32 - 0.3 * (index + 1) - 6 * place**2
            rows.append(
                {
                    **{
                        "model": "m",
                        "protocol": protocol,
                        "recipe": recipe,
                        "bits": bits,
                        "seeds": 3,
                        "images": 500,
                    },
                    **{
                        "top1": value,
                        "top1_std": 0.1 * (place + 1),
                        "agreement": value + 5,
                        "agreement_std": 0.2,
                    },
                    **{"logits_sqnr_db": 30.0 - 5 * place, "logits_sqnr_db_std": 0.5},
                    **{"weight_bits": parse_bits(bits)[0] - 0.25 * (recipe == "finer")},
                }
            )
    return pd.DataFrame(rows, columns=list(SIZED)).assign(**changes)


def costs() -> pd.DataFrame:
    rows = [
        ("m", recipe, bits, seed, 4.0 * 3**index + seed, 700.0)
        for index, recipe in enumerate(RECIPES)
        for bits in BITS
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=list(COSTS))


def points(figure: Figure, panel: int) -> list[tuple[float, float]]:
    bars = [each for each in figure.axes[panel].containers if isinstance(each, ErrorbarContainer)]
    return [(x, y) for bar in bars for x, y in zip(*bar.lines[0].get_data(), strict=True)]


def named(figure: Figure, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].get_legend().get_texts()]


def test_every_point_by_bits_is_a_number_of_the_table(inside: Callable[[Figure], bool]) -> None:
    found, figure = table(), accuracy_by_bits(table(), "m")
    assert inside(figure)
    for panel, protocol in ((0, "products"), (2, "all-operators")):
        own = found[found["protocol"] == protocol]
        assert sorted(y for _, y in points(figure, panel)) == sorted(own["top1"])
        changes = sorted(y for _, y in points(figure, panel + 1))
        np.testing.assert_allclose(changes, sorted(own["top1"] - FP32))
        assert protocol in figure.axes[panel].get_title(loc="left")
        assert figure.axes[panel + 1].get_ylim()[0] == -ENLARGED
    assert named(figure, 1) == ["papers", "finer"]
    assert named(figure, 3) == ["vanilla"]
    assert "500 images; mean ± 1 σ of 3 calibration draws" in figure.get_suptitle()


def test_bits_that_differ_stand_apart_and_no_line_joins_them() -> None:
    assert in_order(BITS) == (["w8a8", "w6a6", "w4a4", "w3a3"], ["w4a8"])
    places = places_of(["w4a8", "w3a3", "w8a8"])
    assert list(places) == ["w8a8", "w3a3", "w4a8"]
    assert places["w4a8"] > places["w3a3"] + 1
    lines = [bar.lines[0] for bar in accuracy_by_bits(table(), "m").axes[2].containers]
    assert [(len(line.get_xdata()), line.get_linestyle()) for line in lines] == [(4, "-"), (1, "None")]


def test_floating_point_is_a_line() -> None:
    for panel, value in ((0, FP32), (1, 0.0)):
        axes = accuracy_by_bits(table(), "m").axes[panel]
        assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [value]
        assert [text.get_text() for text in axes.texts] == ["FP32"]


@pytest.mark.parametrize(
    ("changes", "label", "panels"),
    [
        ({"top1": np.nan}, "agreement with FP32 (%)", 4),
        ({"top1": np.nan, "agreement": np.nan}, "output SQNR (dB)", 2),
    ],
)
def test_without_accuracy_the_next_measure_is_drawn(
    changes: dict[str, float], label: str, panels: int, inside: Callable[[Figure], bool]
) -> None:
    figure = accuracy_by_bits(table(**changes), "m")
    assert (figure.axes[0].get_ylabel(), len(figure.axes)) == (label, panels)
    assert inside(figure)
    assert label in accuracy_by_cost(table(**changes), costs(), "m").axes[0].get_ylabel()
    sized = accuracy_by_size(table(**changes), "m", PARAMETERS)
    assert (sized.axes[0].get_ylabel(), len(sized.axes)) == (label, panels)


def test_every_point_by_cost_stands_at_its_seconds(inside: Callable[[Figure], bool]) -> None:
    found, figure = table(), accuracy_by_cost(table(), costs(), "m")
    assert inside(figure)
    order = ["w8a8", "w6a6", "w4a4", "w3a3", "w4a8"]
    for row, protocol in enumerate(("products", "all-operators")):
        for column, bits in enumerate(order):
            panel = row * len(order) + column
            own = found[(found["protocol"] == protocol) & (found["bits"] == bits)]
            seconds = [4.0 * 3 ** list(RECIPES).index(recipe) + 1 for recipe in own["recipe"]]
            assert points(figure, panel) == list(zip(seconds, own["top1"], strict=True))
            assert figure.axes[panel].get_title(loc="left") == bits.upper()
            assert figure.axes[panel].get_xscale() == "log"
    assert named(figure, len(order) - 1) == ["papers", "finer"]


def test_every_point_by_size_stands_at_its_megabytes(inside: Callable[[Figure], bool]) -> None:
    found, figure = table(), accuracy_by_size(table(), "m", PARAMETERS)
    assert inside(figure)
    step = PARAMETERS / 8e6  # a bit more of every parameter
    for panel, protocol in ((0, "products"), (2, "all-operators")):
        own = found[found["protocol"] == protocol]
        expected = sorted(zip(own["top1"], own["weight_bits"] * step, strict=True))
        drawn = sorted((y, x) for x, y in points(figure, panel))
        assert [y for y, _ in drawn] == [y for y, _ in expected]
        places = [[x for _, x in each] for each in (drawn, expected)]
        np.testing.assert_allclose(*places, atol=0.25 * step)  # beside each other
        changes = sorted(y for _, y in points(figure, panel + 1))
        np.testing.assert_allclose(changes, sorted(own["top1"] - FP32))
    assert named(figure, 1) == ["papers", "finer"]
    assert "FP32: 21.4 MB" in figure.get_supxlabel()


def test_other_bits_of_activations_are_hollow_and_no_line_joins_them() -> None:
    lines = [bar.lines[0] for bar in accuracy_by_size(table(), "m", PARAMETERS).axes[2].containers]
    found = [(len(line.get_xdata()), line.get_linestyle(), line.get_markerfacecolor()) for line in lines]
    assert [each[:2] for each in found] == [(4, "-"), (1, "None")]
    assert [each[2] == "white" for each in found] == [False, True]


def test_one_seed_has_no_whiskers_and_one_recipe_is_enough() -> None:
    found = table(top1_std=np.nan)
    alone = found[found["recipe"].isin(["fp32", "papers"])]
    accuracy_by_bits(alone, "m").draw_without_rendering()
    accuracy_by_size(alone, "m", PARAMETERS).draw_without_rendering()
    accuracy_by_cost(alone, costs()[lambda rows: rows["seed"] == 0], "m").draw_without_rendering()


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UserError, match="--model n: not in the leaderboard; valid: m"):
        accuracy_by_bits(table(), "n")
