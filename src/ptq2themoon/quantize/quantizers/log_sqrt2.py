"""Logarithmic quantization to powers of the square root of two, for values from 0 up such as a softmax's.

RepQ-ViT (Li et al., ICCV 2023, arXiv 2212.08254), section 3.4, in the form of its released code:

    code = round(-2 log2(x / scale)), values with a code of 2^bits or more become 0,
    x^ = scale * 2^(-ceil(code / 2)) * (sqrt(2) if the code is odd, else 1).

The paper writes floor and puts the square root into a scale that depends on the code's parity; both are
scale * 2^(-code / 2). That parity is why no integer product can take the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base_powers import Powers


class LogSqrt2(Powers):
    """scale * sqrt(2)^-code for codes 0 to 2^bits - 1; smaller values are 0. Per tensor."""

    kind = "log_sqrt2"
    codes_per_octave = 2.0

    def powers(self, codes: Tensor) -> Tensor:
        """A power of two, times the square root of two for an odd code."""
        return torch.exp2(-torch.ceil(codes / 2)) * torch.where(codes % 2 == 1, 2**0.5, 1.0)


QUANTIZER = LogSqrt2
