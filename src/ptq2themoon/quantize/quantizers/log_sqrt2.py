"""Logarithmic quantization to powers of the square root of two, for values from 0 up such as a softmax's.

RepQ-ViT (Li et al., ICCV 2023, arXiv 2212.08254), section 3.4, in the form of its released code:

    code = round(-2 log2(x / scale)), values with a code of 2^bits or more become 0,
    x^ = scale * 2^(-ceil(code / 2)) * (sqrt(2) if the code is odd, else 1).

The paper writes floor and puts the square root into a scale that depends on the code's parity; both are
scale * 2^(-code / 2). That parity is why no integer product can take the codes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base import (
    SMALLEST_SCALE,
    Quantizer,
    checked_scale,
    clip,
    round_straight_through,
)
from ptq2themoon.vocabulary.tensor_spec import TensorSpec


class LogSqrt2(Quantizer):
    """scale * sqrt(2)^-code for codes 0 to 2^bits - 1; smaller values are 0. Per tensor."""

    kind = "log_sqrt2"
    array_names = ("scale",)

    def __init__(self, scale: Tensor, bits: int) -> None:
        self.scale, self.bits, self.axis = scale, bits, None
        codes = torch.arange(2**bits, dtype=torch.float32)
        powers = torch.exp2(-torch.ceil(codes / 2)) * torch.where(codes % 2 == 1, 2**0.5, 1.0)
        self._values = torch.cat([powers, torch.zeros(1)])  # the last code stands for 0

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """The quantizer whose first code is `high`; raises `ValueError` for values below 0."""
        if bool((low < 0).any()):
            raise ValueError(f"values below 0 (least {low.min():.6g}) have no logarithm; use kind uniform")
        scale = high.double().cpu().clamp(min=SMALLEST_SCALE)
        return cls(checked_scale(scale), spec.bits)

    @classmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """The quantizer of a file; it has a scale and nothing else, or `ValueError` is raised."""
        if settings or axis is not None:
            raise ValueError(
                f"kind log_sqrt2 has one scale and nothing else, not {', '.join(settings) or 'an axis'}"
            )
        return cls(checked_scale(arrays["scale"]), bits)

    def settings(self) -> dict[str, Any]:
        """Nothing: bits and scale say all."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """The scale, 0-d."""
        return {"scale": self.scale}

    def table(self) -> Tensor:
        """The value of each code, float32 [2^bits + 1]; the last one is 0."""
        return self._values * self.scale.cpu()

    def _codes(self, value: Tensor) -> Tensor:
        """Real numbers, not yet rounded; infinite where the value is 0 or less."""
        return -2 * torch.log2((value / self.scale.to(value.device)).clamp(min=0))

    def __call__(self, value: Tensor) -> Tensor:
        last = 2**self.bits  # stands for 0
        codes = self._codes(value).round_().clamp_(0, last).nan_to_num_(last)
        found = self._values.to(value.device)[codes.long()] * self.scale.to(value.device)
        return torch.where(value.isnan(), value, found)

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with a gradient that takes rounding of its logarithm for the identity."""
        scale = self.scale.to(value.device)
        least = torch.finfo(torch.float32).tiny  # below it there is no logarithm to differentiate
        codes = round_straight_through(-2 * torch.log2((value / scale).clamp(min=least)))
        there = (codes < 2**self.bits) & (value > 0)
        smooth = torch.where(there, scale * torch.exp2(-clip(codes, 0.0, float("inf")) / 2), 0.0)
        return self(value).detach() + (smooth - smooth.detach())  # the gradient is that of `smooth` alone

    @property
    def key(self) -> Hashable:
        """Kind, scale and bits."""
        return self.kind, self.scale.item(), self.bits
