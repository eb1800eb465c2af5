"""The exact test of paired images: McNemar's with one draw, all signs with several, honest under chance."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq2themoon.evaluate.paired import LEVEL, judged, sign_test


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided exact p-value from the binomial, as in McNemar (1947)."""
    n, extreme = gained + lost, max(gained, lost)
    tail = sum(comb(n, k) for k in range(extreme, n + 1)) / 2**n
    return min(1.0, 2 * tail)


def hits(*rows: str) -> np.ndarray:
    return np.array([[mark == "1" for mark in row] for row in rows])


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (0, 6, 0.03125),
        (10, 2, 0.03857421875),
        (121, 59, 4.434e-6),
    ],
)
def test_known_p_values(gained: int, lost: int, p: float) -> None:
    found = sign_test(np.array([1] * gained + [-1] * lost + [0] * 7))
    assert found == pytest.approx(p, rel=1e-3)
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-3)


@given(st.integers(0, 400), st.integers(0, 400))
def test_one_draw_is_mcnemar_s_exact_test(gained: int, lost: int) -> None:
    assert sign_test(np.array([1] * gained + [-1] * lost)) == pytest.approx(mcnemar(gained, lost), abs=1e-9)


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_several_draws_are_all_signs_counted(differences: list[int]) -> None:
    found = abs(sum(differences))
    sums = [sum(map(int.__mul__, differences, signs)) for signs in product((-1, 1), repeat=len(differences))]
    share = sum(abs(each) >= found for each in sums) / len(sums)
    assert sign_test(np.array(differences, dtype=np.int64)) == pytest.approx(share, abs=1e-12)


def test_the_change_is_the_mean_over_draws_in_points() -> None:
    found = judged(hits("1100", "1110"), hits("1000", "1000"))
    assert found.points == pytest.approx(100 * (1 + 2) / 8)
    assert found.verdict == "no difference"
    assert judged(hits("0" * 9), hits("1" * 9)).verdict == "worse"
    assert judged(hits("1" * 9), hits("0" * 9)).verdict == "better"


def test_equal_models_do_not_differ() -> None:
    same = hits("10" * 40)
    assert judged(same, same) == (0.0, 1.0)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same draws and images"):
        judged(hits("10"), hits("100"))


def test_draws_of_one_image_are_not_more_images() -> None:
    """Three equal draws say no more than one."""
    once, base = hits("1" * 14 + "0" * 6), hits("0" * 6 + "1" * 14)
    assert judged(np.repeat(once, 3, 0), np.repeat(base, 3, 0)).p == pytest.approx(judged(once, base).p)
    six = hits("1" * 6), hits("0" * 6)
    assert judged(np.repeat(six[0], 3, 0), np.repeat(six[1], 3, 0)).p == pytest.approx(2 / 2**6)


def test_chance_is_called_a_difference_as_seldom_as_it_says() -> None:
    """Two models of equal accuracy on 300 images, three draws whose hits go together."""
    generator, called = np.random.default_rng(0), 0
    for _ in range(400):
        easy = generator.random(300)
        first, second = ((easy + 0.3 * generator.random((3, 300))) > 0.5 for _ in range(2))
        called += judged(first, second).p < LEVEL
    assert called / 400 < LEVEL + 0.02
