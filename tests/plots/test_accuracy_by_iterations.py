"""Accuracy against iterations: a panel for each measure there is, a line for each recipe."""

from __future__ import annotations

import pandas as pd
import pytest

from ptq2themoon.plots.accuracy_by_iterations import accuracy_by_iterations
from ptq2themoon.vocabulary.learning_curve_layout import CURVE_COLUMNS


def curves(top1: bool = True, seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    rows = [
        (
            recipe,
            "w3a3",
            32,
            seed,
            n,
            500,
            90.0 if top1 else None,
            50.0 + n + seed if top1 else None,
            60.0 + n,
            n,
        )
        for recipe in ("adaround", "qdrop")
        for seed in seeds
        for n in (0, 10, 30)
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def test_each_recipe_is_a_line_of_means_over_seeds() -> None:
    figure = accuracy_by_iterations(curves(), "demo")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "top-1 (%)", "agreement with FP32 (%)", "output SQNR (dB)",
    ]  # fmt: skip
    lines = {c.get_label(): c.lines[0] for c in figure.axes[0].containers}
    assert list(lines) == ["adaround", "qdrop"]
    assert list(lines["qdrop"].get_xdata()) == [0, 10, 30]
    assert list(lines["qdrop"].get_ydata()) == [50.5, 60.5, 80.5]
    assert "mean of 2 seeds" in figure.get_suptitle()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_without_labels_there_is_no_panel_of_top1(seeds: tuple[int, ...]) -> None:
    figure = accuracy_by_iterations(curves(top1=False, seeds=seeds), "demo")
    assert len(figure.axes) == 2
    assert ("seeds" in figure.get_suptitle()) is (len(seeds) > 1)
