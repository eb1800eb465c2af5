"""Logarithmic quantization with a base of its own, for values from 0 up: a softmax's, or a shifted GELU's.

AdaLog (Wu, Chen, Zhong, Huang and Wang, ECCV 2024, arXiv 2407.12951), section 3.2. The base is 2^(q / r),
r = 37 and q a whole number:

    code = round(-(r / q) log2(x / scale)), values with a code of 2^bits or more become 0,
    x^ = scale * 2^-floor(code q / r) * T[code],    T[code] = 2^-(((code q) mod r) / r) on a grid of 1 / D.

So hardware needs two small tables and a shift. D = 2^(bits+1) - 2 as in the released code, and 14 at least:
with 2 bits its grid is so coarse that a value of the table would not have its own code.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base import checked_scale
from ptq2themoon.quantize.quantizers.base_powers import Powers

R = 37
LEAST_Q, MOST_Q = 10, 148  # 3.7 codes from a value to its half, or one to a sixteenth
COARSEST = 14


class AdaLog(Powers):
    """scale * 2^(-code q / 37) for codes 0 to 2^bits - 1; smaller values are 0. Per tensor."""

    kind = "adalog"

    def __init__(self, scale: Tensor, bits: int, q: int = R) -> None:
        self.q, self.codes_per_octave = q, R / q
        self._steps = max(2 ** (bits + 1) - 2, COARSEST)
        super().__init__(scale, bits)

    def powers(self, codes: Tensor) -> Tensor:
        """A power of two, times what a table has for the rest of the exponent."""
        exponents = codes.long() * self.q
        rest = (torch.exp2(-(exponents % R).double() / R) * self._steps).round() / self._steps
        return (torch.exp2(-(exponents // R).double()) * rest).float()

    def with_base(self, scale: Tensor, q: int) -> Self:
        """A quantizer of as many bits with another scale and base."""
        return type(self)(checked_scale(scale), self.bits, q)

    @classmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """The quantizer of a file: q and one scale; raises `ValueError`."""
        if set(settings) != {"q"} or axis is not None:
            raise ValueError(f"kind adalog has q and one scale, not {', '.join(settings) or 'nothing'}")
        q = settings["q"]
        if not isinstance(q, int) or isinstance(q, bool) or not LEAST_Q <= q <= MOST_Q:
            raise ValueError(f"q {q!r}: must be a whole number from {LEAST_Q} to {MOST_Q}")
        return cls(checked_scale(arrays["scale"]), bits, q)

    def settings(self) -> dict[str, Any]:
        """The numerator of the base's exponent."""
        return {"q": self.q}

    @property
    def key(self) -> Hashable:
        """Kind, scale, bits and q."""
        return *super().key, self.q  # type: ignore[misc]


QUANTIZER = AdaLog
