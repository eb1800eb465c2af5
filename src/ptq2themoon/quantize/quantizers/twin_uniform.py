"""Two uniform ranges of one tensor, each with a step of its own: PTQ4ViT's quantizer after softmax and GELU.

Yuan, Xue, Chen, Wu and Sun, "PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform
Quantization", ECCV 2022, arXiv 2111.12293, section 3.2. One bit of a code says which range it is of, so
each has 2^(bits-1) codes. `scale` is the step of the one, `fine_scale` of the other. Which range a value
belongs to is decided `by`

    size   for values from 0 up, such as a softmax's: up to fine_scale * (2^(bits-1) - 1) the fine range,
           above it the other. fine_scale is scale / 2^m, so hardware aligns the two by a shift.
    sign   for GELU's output: below 0 the fine range, with codes -2^(bits-1) to -1; from 0 up the other.

Each value belongs to one range. (The released code adds both for a softmax: a value above the split gets its
own code and the fine range's largest value on top.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, Self, get_args

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

By = Literal["size", "sign"]


class TwinUniform(Quantizer):
    """Multiples of `fine_scale` for small values or those below 0, of `scale` for the others. Per tensor."""

    kind = "twin_uniform"
    array_names = ("scale", "fine_scale")

    def __init__(self, scale: Tensor, fine_scale: Tensor, bits: int, by: By) -> None:
        self.scale, self.fine_scale, self.bits, self.by, self.axis = scale, fine_scale, bits, by, None

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """By sign where there are values below 0, else by size.

        By size the fine range is 2^(bits-1) times as fine: the most at which no value lies above it that
        the other range would round to 0.
        """
        largest = 2 ** (spec.bits - 1) - 1
        lowest, highest = low.double().cpu().clamp(max=0), high.double().cpu().clamp(min=0)
        scale = checked_scale((highest / largest).clamp(min=SMALLEST_SCALE))
        if bool(lowest == 0):
            return cls(scale, scale * 2.0 ** (1 - spec.bits), spec.bits, "size")
        fine_scale = (-lowest / 2 ** (spec.bits - 1)).clamp(min=SMALLEST_SCALE)
        return cls(scale, checked_scale(fine_scale), spec.bits, "sign")

    @classmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """The quantizer of a file; raises `ValueError` unless it has two scales, `by` and nothing else."""
        if set(settings) != {"by"} or settings["by"] not in get_args(By) or axis is not None:
            raise ValueError(f"kind twin_uniform has two scales and by: size or sign, not {dict(settings)}")
        by: By = settings["by"]
        scale, fine_scale = (checked_scale(arrays[name]) for name in cls.array_names)
        if by == "size" and not bool(
            torch.log2(scale / fine_scale) == torch.log2(scale / fine_scale).round()
        ):
            raise ValueError("by size, fine_scale must be scale divided by a power of two")
        return cls(scale, fine_scale, bits, by)

    def with_scale(self, scale: Tensor) -> Self:
        """As this one, with another step of large or positive values."""
        return type(self)(checked_scale(scale), self.fine_scale, self.bits, self.by)

    def with_fine_scale(self, fine_scale: Tensor) -> Self:
        """As this one, with another step of small or negative values."""
        return type(self)(self.scale, checked_scale(fine_scale), self.bits, self.by)

    def settings(self) -> dict[str, Any]:
        """What decides to which range a value belongs."""
        return {"by": self.by}

    def arrays(self) -> dict[str, Tensor]:
        """Both scales, 0-d."""
        return {"scale": self.scale, "fine_scale": self.fine_scale}

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Least and largest code of the fine range, then of the other."""
        half: int = 2 ** (self.bits - 1)
        return (0, half - 1, 0, half - 1) if self.by == "size" else (-half, 0, 0, half - 1)

    @property
    def split(self) -> Tensor:
        """The greatest value of the fine range, 0-d."""
        return self.fine_scale * self.bounds[1]

    def is_fine(self, value: Tensor) -> Tensor:
        """Which values belong to the fine range."""
        return value <= self.split.to(value.device)

    def __call__(self, value: Tensor) -> Tensor:
        scale, fine_scale = (each.to(value.device) for each in (self.scale, self.fine_scale))
        low, high, least, most = self.bounds
        fine = (value / fine_scale).round_().clamp_(low, high).mul_(fine_scale)
        found = (value / scale).round_().clamp_(least, most).mul_(scale)
        return torch.where(self.is_fine(value), fine, found)

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with gradients of `value` and both scales past the rounding."""
        scale, fine_scale = (each.to(value.device) for each in (self.scale, self.fine_scale))
        low, high, least, most = self.bounds
        fine = clip(round_straight_through(value / fine_scale), float(low), float(high)) * fine_scale
        found = clip(round_straight_through(value / scale), float(least), float(most)) * scale
        return torch.where(self.is_fine(value), fine, found)

    @property
    def key(self) -> Hashable:
        """Kind, both scales, bits, and what decides between the ranges."""
        return self.kind, self.scale.item(), self.fine_scale.item(), self.bits, self.by


QUANTIZER = TwinUniform
