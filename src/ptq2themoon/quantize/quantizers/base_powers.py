"""Logarithmic quantization, for values from 0 up such as a softmax's: what its kinds have in common.

code = round(-log_base(x / scale)), values with a code of 2^bits or more become 0,
x^ = scale * base^-code, as the kind's table has it.
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

ROUND_OFF = 1e-6  # of the largest value: a sum that should be 0 may fall below it by so much


class Powers(Quantizer):
    """scale * base^-code for codes 0 to 2^bits - 1; smaller values are 0. Per tensor.

    Attributes:
        codes_per_octave: how many codes later a value is half as large; a kind says it.
    """

    array_names = ("scale",)
    codes_per_octave: float

    def __init__(self, scale: Tensor, bits: int) -> None:
        self.scale, self.bits, self.axis = scale, bits, None
        powers = self.powers(torch.arange(2**bits, dtype=torch.float32))
        self._values = torch.cat([powers, torch.zeros(1)])  # the last code stands for 0

    def powers(self, codes: Tensor) -> Tensor:
        """base^-code of whole codes, float32, in the kind's own arithmetic."""
        return torch.exp2(-codes / self.codes_per_octave)

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """The quantizer whose first code is `high`; raises `ValueError` for values below 0."""
        if bool((low < -ROUND_OFF * high.clamp(min=0)).any()):
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
                f"kind {cls.kind} has one scale and nothing else, not {', '.join(settings) or 'an axis'}"
            )
        return cls(checked_scale(arrays["scale"]), bits)

    def with_scale(self, scale: Tensor) -> Self:
        """A quantizer of the same codes with another scale, float32, 0-d."""
        return self.from_settings(self.bits, None, self.settings(), {"scale": scale})

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
        return -self.codes_per_octave * torch.log2((value / self.scale.to(value.device)).clamp(min=0))

    def __call__(self, value: Tensor) -> Tensor:
        last = 2**self.bits  # stands for 0
        codes = self._codes(value).round_().clamp_(0, last).nan_to_num_(last)
        found = self._values.to(value.device)[codes.long()] * self.scale.to(value.device)
        return torch.where(value.isnan(), value, found)

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with a gradient that takes rounding of its logarithm for the identity."""
        scale = self.scale.to(value.device)
        least = torch.finfo(torch.float32).tiny  # below it there is no logarithm to differentiate
        dense = self.codes_per_octave
        codes = round_straight_through(-dense * torch.log2((value / scale).clamp(min=least)))
        there = (codes < 2**self.bits) & (value > 0)
        smooth = torch.where(there, scale * torch.exp2(-clip(codes, 0.0, float("inf")) / dense), 0.0)
        return self(value).detach() + (smooth - smooth.detach())  # the gradient is that of `smooth` alone

    @property
    def key(self) -> Hashable:
        """Kind, scale and bits."""
        return self.kind, self.scale.item(), self.bits
