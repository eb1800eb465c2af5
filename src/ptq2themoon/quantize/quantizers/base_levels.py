"""Quantization of weights to levels that are not evenly spaced: what its kinds have in common.

x^ = scale * sign(x) * (the level nearest to |x| / scale), levels from 0 to 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base import SMALLEST_SCALE, Quantizer, along, checked_scale, clip
from ptq2themoon.vocabulary.tensor_spec import TensorSpec


class Levels(Quantizer):
    """2^(bits-1) magnitudes from 0 to the scale, and a sign; per tensor or per channel.

    Where two levels are equally near, the one nearer to 0 is taken.
    """

    array_names = ("scale",)

    def __init__(self, scale: Tensor, bits: int, axis: int | None) -> None:
        self.scale, self.bits, self.axis = scale, bits, axis
        found = self.magnitudes(bits).sort().values.double()
        self._levels = torch.cat([-found.flip(0), found[1:]]).float()
        self._edges = ((self._levels[1:].double() + self._levels[:-1].double()) / 2).float()

    @classmethod
    @abstractmethod
    def magnitudes(cls, bits: int) -> Tensor:
        """The levels from 0 to 1 of a code of so many bits, one of which is the sign; float64."""

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """The quantizer whose largest level is the largest magnitude of the range."""
        largest = torch.maximum(-low.double().cpu(), high.double().cpu())
        return cls(checked_scale(largest.clamp(min=SMALLEST_SCALE)), spec.bits, axis)

    @classmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """The quantizer of a file; it has a scale and nothing else, or `ValueError` is raised."""
        if settings:
            raise ValueError(f"kind {cls.kind} has a scale and nothing else, not {', '.join(settings)}")
        return cls(checked_scale(arrays["scale"]), bits, axis)

    def with_scale(self, scale: Tensor) -> Self:
        """A quantizer of the same levels with other scales, float32 of the same shape."""
        return type(self)(checked_scale(scale), self.bits, self.axis)

    def settings(self) -> dict[str, Any]:
        """Nothing: bits and scale say all."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """The scale, 0-d or [channels]."""
        return {"scale": self.scale}

    def levels(self) -> Tensor:
        """The value of each code in steps of the scale, float32 [2^bits - 1] from -1 to 1."""
        return self._levels

    def __call__(self, value: Tensor) -> Tensor:
        scale = along(self.scale.to(value.device), self.axis, value.ndim)
        levels, edges = (each.to(value.device, value.dtype) for each in (self._levels, self._edges))
        share = value / scale
        size = torch.bucketize(share.abs(), edges[len(edges) // 2 :])  # the edge itself falls to the lower
        found = levels[len(levels) // 2 :][size].copysign(share) * scale
        return torch.where(value.isnan(), value, found + 0.0)  # no -0

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with gradients of `value` and scale past the choice of the level."""
        scale = along(self.scale.to(value.device), self.axis, value.ndim)
        found = self(value).detach()
        share = value / scale
        smooth = clip(share + (found / scale - share).detach(), -1.0, 1.0)
        beyond = share.abs() > 1
        smooth = torch.where(beyond, share.detach().sign(), smooth) * scale
        return found + (smooth - smooth.detach())

    @property
    def key(self) -> Hashable:
        """Kind, scales, bits and axis."""
        axis = self.axis if self.scale.ndim else None
        return self.kind, tuple(self.scale.flatten().tolist()), self.bits, axis
