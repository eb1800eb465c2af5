"""Weights as sums of powers of two: a product with one is a few shifts of bits and their sum.

Li, Dong and Wang, "Additive Powers-of-Two Quantization: An Efficient Non-uniform Discretization for Neural
Networks", ICLR 2020, arXiv 1909.13144, equation 5. With m = bits - 1 bits for the magnitude and two bits for
each of n = m / 2 terms,

    level = gamma * (p_0 + ... + p_(n-1)),   p_i one of 0, 2^-i, 2^-(i+n), 2^-(i+2n),

gamma so that the largest level is 1. Where m is odd, one more term has one bit, its power between the second
and the third of the others, as in the released code for 3 and 5 bits. The same rule serves any m here; the
code has 2 to 6.

Where this differs from the paper: the scale comes from the recipe's observer and is not trained, and the
weights are not normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base_levels import Levels


class APoT(Levels):
    """Sums of powers of two, from the scale downwards."""

    kind = "apot"

    @classmethod
    def magnitudes(cls, bits: int) -> Tensor:
        """All sums of one power, or none, of each term, divided by the largest sum."""
        terms, odd = divmod(bits - 1, 2)
        powers: list[list[float]] = [
            [0.0, 2.0**-i, 2.0 ** -(i + terms), 2.0 ** -(i + 2 * terms + odd)] for i in range(terms)
        ]
        if odd:
            powers.append([0.0, 2.0 ** -(2 * terms)])
        sums = torch.zeros(1, dtype=torch.float64)
        for choices in powers:
            sums = (sums[:, None] + torch.tensor(choices, dtype=torch.float64)).flatten()
        return sums / sums.max()


QUANTIZER = APoT
