"""Times by turns, their quartiles, and tables of them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from ptq2themoon.benchmark.timing import (
    SHORTEST,
    WARM_UP,
    Quartiles,
    interleaved,
    quartiles,
    ratios,
    repeats,
)
from ptq2themoon.tables.csv_rows import read_csv, write_csv


def test_quartiles_stand_beside_the_median() -> None:
    assert quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == Quartiles(3.0, 2.0, 4.0)
    assert quartiles([7.0]) == Quartiles(7.0, 7.0, 7.0)


def test_ratios_are_of_the_same_round() -> None:
    """A machine twice as slow in one round changes no ratio."""
    found = ratios({"base": [4.0, 8.0, 4.0], "fast": [2.0, 4.0, 2.0]}, "base")
    assert found == {"base": Quartiles(1.0, 1.0, 1.0), "fast": Quartiles(2.0, 2.0, 2.0)}


def test_all_run_once_in_each_round_by_turns() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * (WARM_UP + 3)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_short_work_is_repeated_as_often_for_all() -> None:
    clock = count(0, SHORTEST / 3.5)  # each look at the clock is that much later
    calls = {"base": 0, "other": 0}

    def work(name: str) -> None:
        calls[name] += 1

    done = {name: (lambda name=name: work(name)) for name in calls}
    times = interleaved(done, 2, "base", clock=lambda: next(clock))
    assert calls == {"base": WARM_UP + 2 * 4, "other": WARM_UP + 2 * 4}
    assert times["base"] == pytest.approx([SHORTEST / 14] * 2)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, None), (SHORTEST, 1), (10.0, 1), (SHORTEST / 2.5, 3)])
def test_repeats(seconds: float, times: int | None) -> None:
    assert repeats(seconds) == times if times else repeats(seconds) > 1


def test_tables_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ("a", "b"), [{"a": 1, "b": "x, y"}, {"a": 2, "b": None}, {"a": 3}])
    assert read_csv(path) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}, {"a": "3", "b": ""}]
    assert b"\r" not in path.read_bytes()
