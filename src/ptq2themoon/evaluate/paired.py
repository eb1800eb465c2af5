"""Whether two models differ by more than chance on the same images. Without torch.

An image is the unit. Of each image the *difference* is how often the one model is right less how often the
other is, summed over the draws of calibration images. If neither is better, each difference may as well have
the other sign: the two-sided p-value is the share of all signs whose sum is at least as far from 0 as the one
found. With one draw this is McNemar's exact test (McNemar 1947: the binomial of the images on which exactly
one is right). Draws of one image are not counted as images of their own, which would make chance look rarer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL = 0.05  # a p-value from here on is no difference
_ROUNDING = 1e-9


class Difference(NamedTuple):
    """Of one model from another on the same images.

    Attributes:
        points: percentage points, the mean over draws.
        p: two-sided; 1 where no image differs.
    """

    points: float
    p: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference`."""
        if self.p >= LEVEL:
            return "no difference"
        return "better" if self.points > 0 else "worse"


def judged(hits: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> Difference:
    """How `hits` differ from `others`.

    Args:
        hits: [draws, images], True where the model is right.
        others: [draws, images], the same of the other model; draw by draw on the same calibration images.
    """
    if hits.shape != others.shape:
        raise ValueError(f"hits {hits.shape} and {others.shape}: not the same draws and images")
    differences = hits.sum(0, dtype=np.int64) - others.sum(0, dtype=np.int64)
    return Difference(100 * float(differences.sum()) / hits.size, sign_test(differences))


def sign_test(differences: npt.NDArray[np.int64]) -> float:
    """The share of all signs of `differences` whose sum is at least as far from 0 as theirs.

    From the characteristic function of that sum, the product of cos(size · t), so exact up to rounding.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    largest = int((sizes * counts).sum())
    if largest == 0:
        return 1.0
    period = 2 * largest + 1
    angles = 2 * np.pi * np.arange(period) / period
    spectrum = np.ones(period)
    for size, count in zip(sizes, counts, strict=True):
        spectrum *= np.cos(size * angles) ** int(count)
    shares = np.fft.ifft(spectrum).real  # of each sum modulo the period, which no two sums share
    sums = np.fft.fftfreq(period, 1 / period)
    found = abs(int(differences.sum()))
    share = float(shares[np.abs(sums) >= found - 0.5].sum())
    return min(max(share, 0.0), 1.0) if share > _ROUNDING else 0.0
