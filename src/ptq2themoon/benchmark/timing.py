"""Times that can be compared: all contestants by turns in one run, medians with quartiles.

Speeds of one machine at two times differ by more than what is measured here; so every time is divided
by the baseline's in the same round, and the ratios are what the tables hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

WARM_UP = 2  # rounds that do not count
SHORTEST = 0.05  # seconds that the baseline runs in a round: shorter work is repeated


class Quartiles(NamedTuple):
    """The median and the quartiles beside it."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of at least one value."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Quartiles(float(median), float(low), float(high))


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, Quartiles]:
    """How many times faster than `base` each is: round by round, then median and quartiles over rounds."""
    return {
        name: quartiles([reference / found for reference, found in zip(times[base], values, strict=True)])
        for name, values in times.items()
    }


def repeats(seconds: float) -> int:
    """How often work of that length runs in a round."""
    return max(1, math.ceil(SHORTEST / max(seconds, 1e-9)))


def interleaved(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    base: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each work in each round, one after the other in every round.

    Args:
        work: by name.
        base: repeat all as often in a round as this one needs to be measured well; None: once.
    """
    for _ in range(WARM_UP):
        found = {name: _once(do, 1, clock) for name, do in work.items()}
    count = repeats(found[base]) if base else 1
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            times[name].append(_once(do, count, clock))
    return times


def _once(do: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        do()
    return (clock() - start) / count
