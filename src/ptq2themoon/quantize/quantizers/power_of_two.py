"""Weights as powers of two, so that a product with one is a shift of bits.

Miyashita, Lee and Murmann, "Convolutional Neural Networks using Logarithmic Data Representation", arXiv
1603.01025, and Zhou et al., "Incremental Network Quantization", ICLR 2017, arXiv 1702.03044:

    levels 0 and 2^-k for k = 0 to 2^(bits-1) - 2, times the scale, with a sign.

The first paper rounds the logarithm; here the nearest level is taken, as in the second, for its squared error
is the least. More bits give smaller levels and none between the large ones: beyond 4 bits little is gained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base_levels import Levels


class PowerOfTwo(Levels):
    """0 and powers of two, from the scale downwards."""

    kind = "power_of_two"

    @classmethod
    def magnitudes(cls, bits: int) -> Tensor:
        """0 and 1, 1/2, 1/4, ...; of many bits the least lie below what float32 has, and are 0."""
        exponents = torch.arange(min(2 ** (bits - 1) - 1, 127), dtype=torch.float64)
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.exp2(-exponents)])


QUANTIZER = PowerOfTwo
