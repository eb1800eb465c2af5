"""Give each of several places one of its options, so that losses are least within a limit of costs.

The multiple-choice knapsack problem: of each place i one option k, to minimise the sum of loss[i, k] with
the sum of cost[i, k] <= limit. It is solved exactly, by dynamic programming over the places. Kept are those
beginnings that no other one beats in both cost and loss, and that can still become better than a solution
known already. With a price p >= 0 of cost, no end of a beginning has less loss than

    loss + p (cost - limit) + sum over the places to come of min_k (loss[i][k] + p cost[i][k])

(Lagrange's relaxation); the price is the one with the highest bound at the root, found by bisection, and
the options that are cheapest at it are the solution known already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Costs = Sequence[Sequence[int]]
Losses = Sequence[Sequence[float]]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

HALVINGS = 100  # of the interval of prices: all digits of a float64
SLACK = 1e-9  # of a loss, for sums in another order


def allocate(costs: Costs, losses: Losses, limit: float) -> list[int]:
    """The index of the option that each place takes; of equal losses the least cost.

    Args:
        costs, losses: of each option of each place.
        limit: of the sum of costs.

    Raises:
        ValueError: no solution is within the limit.
    """
    cost = [np.asarray(each, np.int64) for each in costs]
    loss = [np.asarray(each, np.float64) for each in losses]
    if sum(int(each.min()) for each in cost) > limit:
        raise ValueError("the least costs together are above the limit")
    price, known = _best_price(cost, loss, limit)
    largest = sum(float(np.abs(each).max()) for each in loss)
    return _walk(cost, loss, limit, price, known + SLACK * largest)


def _best_price(cost: list[Indices], loss: list[Floats], limit: float) -> tuple[float, float]:
    """The price of cost with the highest bound, and the least loss of a solution found on the way."""

    def at(price: float) -> tuple[float, float]:
        chosen = [np.lexsort((own, values + price * own))[0] for own, values in zip(cost, loss, strict=True)]
        spent = sum(int(own[k]) for own, k in zip(cost, chosen, strict=True))
        return spent, sum(float(values[k]) for values, k in zip(loss, chosen, strict=True))

    spent, found = at(0.0)
    if spent <= limit:
        return 0.0, found
    low, high = 0.0, 1.0 + max(float(np.ptp(values)) for values in loss)  # costs are whole numbers
    known = at(high)[1]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        spent, found = at(middle)
        if spent <= limit:
            high, known = middle, min(known, found)
        else:
            low = middle
    return high, known


def _walk(cost: list[Indices], loss: list[Floats], limit: float, price: float, known: float) -> list[int]:
    cheapest = _sums_to_come([float(each.min()) for each in cost])
    least = _sums_to_come(
        [float((values + price * own).min()) for own, values in zip(cost, loss, strict=True)]
    )
    spent, lost = np.zeros(1, np.int64), np.zeros(1)
    taken: list[tuple[Indices, Indices]] = []  # of each place: the beginning, and its option
    for own, values, needed, bound in zip(cost, loss, cheapest, least, strict=True):
        costs = (spent[:, None] + own).ravel()
        losses = (lost[:, None] + values).ravel()
        kept = np.flatnonzero((costs + needed <= limit) & (losses + price * (costs - limit) + bound <= known))
        kept = kept[np.lexsort((losses[kept], costs[kept]))]
        lowest = np.minimum.accumulate(losses[kept])
        kept = kept[np.r_[True, losses[kept][1:] < lowest[:-1]]]
        taken.append((kept // len(own), kept % len(own)))
        spent, lost = costs[kept], losses[kept]
    at, found = len(lost) - 1, []
    for before, option in reversed(taken):
        found.append(int(option[at]))
        at = int(before[at])
    return found[::-1]


def _sums_to_come(values: list[float]) -> list[float]:
    """At each place the sum over those after it."""
    return [float(sum(values[index + 1 :])) for index in range(len(values))]
