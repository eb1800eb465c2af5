"""Uniform quantization: codes are multiples of a scale, counted from a zero point."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base import (
    SMALLEST_SCALE,
    Quantizer,
    along,
    checked_scale,
    clip,
    round_straight_through,
)
from ptq2themoon.vocabulary.tensor_spec import TensorSpec, code_range

SETTINGS = {"quant_min", "quant_max"}


class Uniform(Quantizer):
    """(clip(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale.

    Rounds half to even. Symmetric where the zero point is 0; signed codes are -2^(bits-1) to
    2^(bits-1)-1, unsigned ones 0 to 2^bits-1. In the order of PPQ's operations, so bit-equal to it: the
    zero point is taken from the bounds instead of added and subtracted, which is exact for integers.

    Attributes:
        zero_point: whole numbers as float32, of the scale's shape, within the codes.
    """

    kind = "uniform"
    array_names = ("scale", "zero_point")

    def __init__(
        self, scale: Tensor, zero_point: Tensor, bits: int, quant_min: int, quant_max: int, axis: int | None
    ) -> None:
        self.scale, self.zero_point = scale, zero_point
        self.bits, self.quant_min, self.quant_max, self.axis = bits, quant_min, quant_max, axis
        self._placed: dict[tuple[int, torch.device], tuple[Tensor, Any, Any]] = {}

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """The quantizer whose codes cover `low` to `high` and 0, float32, 0-d or [channels]."""
        bounds = spec.quant_min, spec.quant_max
        lowest, highest = low.double().cpu().clamp(max=0), high.double().cpu().clamp(min=0)
        zero_point = torch.zeros_like(lowest)
        if spec.symmetry == "asymmetric":
            scale = ((highest - lowest) / (bounds[1] - bounds[0])).clamp(min=SMALLEST_SCALE)
            zero_point = (bounds[0] - lowest / scale).round().clamp(*bounds)
        elif bounds[0] == 0:
            if bool((lowest < 0).any()):
                raise ValueError(
                    f"values below 0 (least {lowest.min():.6g}) have no unsigned code without a zero point; "
                    "say symmetry: asymmetric, or codes: signed"
                )
            scale = (highest / bounds[1]).clamp(min=SMALLEST_SCALE)
        else:
            largest = torch.maximum(-lowest, highest)
            scale = (2 * largest / (bounds[1] - bounds[0])).clamp(min=SMALLEST_SCALE)
        return cls(checked_scale(scale), zero_point.float(), spec.bits, *bounds, axis)

    @classmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """The quantizer of a file: range of codes, scale and zero point; raises `ValueError`."""
        if set(settings) != SETTINGS:
            raise ValueError(
                f"kind uniform has {', '.join(sorted(SETTINGS))}, not {', '.join(settings) or 'nothing'}"
            )
        bounds = settings["quant_min"], settings["quant_max"]
        if bounds not in (code_range(bits, "signed"), code_range(bits, "unsigned")):
            raise ValueError(f"quant_min {bounds[0]} and quant_max {bounds[1]} are not those of {bits} bits")
        scale, zero_point = checked_scale(arrays["scale"]), arrays["zero_point"].to(torch.float32)
        if zero_point.ndim and zero_point.shape != scale.shape:
            raise ValueError("scale and zero_point differ in shape")
        inside = (zero_point >= bounds[0]) & (zero_point <= bounds[1]) & (zero_point == zero_point.round())
        if not bool(inside.all()):
            raise ValueError(f"zero_point must be a whole number in {bounds[0]} to {bounds[1]}")
        return cls(scale, zero_point.expand(scale.shape).clone(), bits, *bounds, axis)

    def with_scale(self, scale: Tensor) -> Self:
        """A quantizer of the same codes and zero points with other scales, float32 of the same shape."""
        bounds = self.quant_min, self.quant_max
        return type(self)(checked_scale(scale), self.zero_point, self.bits, *bounds, self.axis)

    def part(self, index: Tensor) -> Self:
        """The quantizer of some channels, of a quantizer with a scale for each; `index`: which, [n]."""
        scale, zero_point = self.scale[index.cpu()], self.zero_point[index.cpu()]
        return type(self)(scale, zero_point, self.bits, self.quant_min, self.quant_max, self.axis)

    def changed(self, scale: Tensor, zero_point: Tensor) -> Self:
        """A quantizer of the same codes with other scales and zero points, float32 of the scales' shape."""
        bounds = self.quant_min, self.quant_max
        return type(self)(checked_scale(scale), zero_point, self.bits, *bounds, self.axis)

    def settings(self) -> dict[str, Any]:
        """Least and largest code."""
        return {"quant_min": self.quant_min, "quant_max": self.quant_max}

    def arrays(self) -> dict[str, Tensor]:
        """Scale and zero point, each 0-d or [channels]; symmetric ones have one zero point."""
        symmetric = self.zero_point.ndim and self.symmetric
        return {"scale": self.scale, "zero_point": self.zero_point[0] if symmetric else self.zero_point}

    @property
    def symmetric(self) -> bool:
        """Whether 0 has code 0."""
        return not bool(self.zero_point.any())

    @property
    def lowest(self) -> Tensor:
        """Smallest code less the zero point: how many steps below 0 the grid reaches."""
        return self.quant_min - self.zero_point

    @property
    def highest(self) -> Tensor:
        """Largest code less the zero point."""
        return self.quant_max - self.zero_point

    def steps(self, value: Tensor) -> Tensor:
        """`value` in multiples of the scale, not yet rounded, clipped to the codes less the zero point."""
        scale, low, high = self._at(value)
        return (value / scale).clamp_(low, high)

    def codes(self, value: Tensor) -> Tensor:
        """The code of each value less the zero point: whole numbers as float32."""
        scale, low, high = self._at(value)
        return (value / scale).round_().clamp_(low, high)

    def __call__(self, value: Tensor) -> Tensor:
        return self.codes(value).mul_(self._at(value)[0])

    def in_place(self, value: Tensor) -> Tensor:
        """`value` overwritten with its quantized values."""
        scale, low, high = self._at(value)
        return value.div_(scale).round_().clamp_(low, high).mul_(scale)

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with gradients of `value`, scale and zero point past the rounding."""
        rank = value.ndim
        scale, zero_point = (
            along(each.to(value.device), self.axis, rank) for each in (self.scale, self.zero_point)
        )
        steps = round_straight_through(value / scale)
        return clip(steps, self.quant_min - zero_point, self.quant_max - zero_point) * scale

    def _at(self, value: Tensor) -> tuple[Tensor, Any, Any]:
        """Scale and bounds in steps, shaped and placed for `value`; kept, for each call asks again."""
        key = value.ndim, value.device
        if key not in self._placed:
            scale = along(self.scale.to(value.device), self.axis, value.ndim)
            bounds = [self.lowest, self.highest]
            one = not self.zero_point.ndim or bool((self.zero_point == self.zero_point[0]).all())
            low, high = (
                float(b.flatten()[0]) if one else along(b.to(value.device), self.axis, value.ndim)
                for b in bounds
            )
            self._placed[key] = scale, low, high
        return self._placed[key]

    @property
    def key(self) -> Hashable:
        """Kind, scales, zero points, axis and range of codes."""
        values = tuple(self.scale.flatten().tolist()), tuple(self.zero_point.flatten().tolist())
        return self.kind, *values, self.axis if self.scale.ndim else None, self.quant_min, self.quant_max


QUANTIZER = Uniform
