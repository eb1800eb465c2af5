"""The exact program against every way to choose, and its limit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq2themoon.quantize.allocation import allocate

OPTIONS = st.lists(st.tuples(st.integers(0, 30), st.integers(-4, 12)), min_size=1, max_size=4)


def spent(values: list[list[int]], taken: tuple[int, ...] | list[int]) -> int:
    return sum(own[index] for own, index in zip(values, taken, strict=True))


@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(0, 60))
def test_no_other_choice_within_the_limit_is_better(places: list[list[tuple[int, int]]], more: int) -> None:
    costs, losses = ([[pair[i] for pair in own] for own in places] for i in (0, 1))
    limit = sum(map(min, costs)) + more
    found = allocate(costs, losses, limit)
    every = [way for way in product(*(range(len(own)) for own in costs)) if spent(costs, way) <= limit]
    assert spent(costs, found) <= limit
    assert spent(losses, found) == min(spent(losses, way) for way in every)


def test_of_equal_losses_the_least_cost_is_taken() -> None:
    assert allocate([[3, 2, 5], [4, 1]], [[1, 1, 1], [0, 0]], 100) == [1, 1]


def test_a_limit_is_kept_to_the_last_unit() -> None:
    costs, losses = [[2, 3], [2, 3]], [[1.0, 0.5], [1.0, 0.4]]
    assert allocate(costs, losses, 5) == [0, 1]
    assert allocate(costs, losses, 4.999) == [0, 0]
    with pytest.raises(ValueError, match="above the limit"):
        allocate(costs, losses, 3)


def test_many_places_with_losses_that_span_orders_of_magnitude() -> None:
    """The gap to what a fraction of an option could gain, by the relaxation, is at most one place's loss."""
    generator = np.random.default_rng(0)
    choices = [2, 3, 4, 5, 6, 7, 8]
    sizes = generator.integers(1_000, 1_000_000, 120)
    costs = [[int(size) * bits for bits in choices] for size in sizes]
    losses = [[float(f * 4.0**-bits) for bits in choices] for f in 10 ** generator.uniform(0, 4, 120)]
    limit = 4.3 * int(sizes.sum())
    found = allocate(costs, losses, limit)
    assert 0.9999 * limit < sum(own[i] for own, i in zip(costs, found, strict=True)) <= limit
    bound = max(
        sum(min(x + p * c for x, c in zip(a, b, strict=True)) for a, b in zip(losses, costs, strict=True))
        - p * limit
        for p in np.geomspace(1e-9, 1e-2, 400)
    )
    loss = sum(own[i] for own, i in zip(losses, found, strict=True))
    assert bound <= loss <= 1.001 * bound
