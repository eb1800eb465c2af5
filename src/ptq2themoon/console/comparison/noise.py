"""Whether two figures of the same images differ by more than noise.

Where it is known of each image whether it hits, the paired test of `evaluate.paired` judges. Where only the
two percentages are known, the largest p-value that they leave open counts: an image on which exactly one of
the two hits is missed by the other, so there are at most as many such images as both miss together. Other
figures have a tolerance: what another processor, which sums in another order, was seen to change, with room.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ptq2themoon.evaluate.paired import judged, sign_test
from ptq2themoon.tables.leaderboard_rows import Hits

DECIBELS = 0.15  # of a model's output
OPERATOR_DECIBELS = 1.0  # of one operator's
# Of a scale, relative to itself: the end of an 8-bit range moves by a fifteenth of a step. The last digits of
# FP32 are far less, but a method that calibrates behind quantized layers sees other codes at rounding ties.
SCALE = 5e-4
# Of a figure that is best at 0 or at 1: the share of its distance from there.
FROM_ZERO = {"loss": 0.01, "attention_kl": 0.05}
FROM_ONE = {"output_cosine": 0.05, "attention_cosine": 0.05}


class Judgement(NamedTuple):
    """What a difference is worth.

    Attributes:
        large: whether it is larger than the tolerance; of hits, whether there is any.
        p: of the paired test; None where no test was possible, and the tolerance alone counts.
        how: the same for people.
    """

    large: bool
    p: float | None
    how: str

    def beyond(self, level: float) -> bool:
        """Whether this is more than noise, where a p-value below `level` is."""
        return self.large and (self.p is None or self.p < level)


def paired_hits(first: Hits, second: Hits) -> Judgement:
    """By the images.

    Args:
        first, second: [draws, images], True where a model hits.
    """
    p = judged(second, first).p
    return Judgement(bool((first != second).any()), p, f"paired, p = {p:.2g}")


def bounded_hits(first: float, second: float, images: int, most: float | None = None) -> Judgement:
    """By percentages alone, with the largest p-value that they leave open.

    Args:
        first, second: percent of the images that hit.
        most: images on which the two can differ at all, where that is known; those missed count too.
    """
    net = round(abs(first - second) * images / 100)
    missed = round((200 - first - second) * images / 100)
    open_ = max(net, min(missed, round(missed if most is None else most)))
    open_ -= (open_ - net) % 2  # as many gained as lost, but for the net change
    signs = np.ones(open_, np.int64)
    signs[: (open_ - net) // 2] = -1
    p = sign_test(signs)
    return Judgement(net > 0, p, f"paired, p ≤ {p:.2g}")


def by_tolerance(name: str, first: float, second: float) -> Judgement:
    """Of the figures that are no percentages."""
    change = abs(second - first)
    if name in FROM_ZERO:
        allowed = FROM_ZERO[name] * max(abs(first), abs(second))
    elif name in FROM_ONE:
        allowed = FROM_ONE[name] * max(1 - first, 1 - second)
    else:
        allowed = DECIBELS
    return Judgement(change > allowed, None, f"tolerance {allowed:.2g}")
