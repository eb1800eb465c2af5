"""The integers of a file that stand for the codes of a uniform quantizer of one zero point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.quantizers.base import along
from ptq2themoon.vocabulary.tensor_spec import code_range

STORED_BITS = 8  # of the integers in the file; fewer bits use a part of their range


@dataclass(frozen=True, eq=False)
class Grid:
    """Multiples of a scale, low..high: what a uniform quantizer makes of values.

    Attributes:
        scale: float32, 0-d, or [channels] along `axis`.
        low, high: smallest and largest multiple: codes less the zero point, so that 0 stands for 0.
    """

    scale: np.ndarray
    axis: int | None
    low: int
    high: int

    @classmethod
    def of_weight(cls, weight: np.ndarray, axis: int, bits: int) -> Grid:
        """Symmetric, one scale per channel along `axis`, so that its largest magnitude is the top code."""
        low, high = code_range(bits, "signed")
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(axis=others).astype(np.float32) / np.float32(high)
        scale = np.where(largest > 0, largest, np.float32(1)).astype(np.float32)
        return cls(scale, axis, low, high)

    @property
    def per_channel(self) -> bool:
        """Whether the channels along `axis` have a scale each."""
        return self.axis is not None

    @property
    def bits(self) -> int:
        """Bits that the range of codes needs."""
        return (self.high - self.low).bit_length()

    @property
    def stored(self) -> bool:
        """Whether integers of 8 bits hold its codes."""
        return self.high - self.low < 1 << STORED_BITS

    @property
    def narrow(self) -> bool:
        """Whether its range is less than that of the integers which store it."""
        return self.high - self.low < (1 << STORED_BITS) - 1

    @property
    def zero_point(self) -> int:
        """The int8 that stands for 0; 128 more is the uint8."""
        low, high = code_range(STORED_BITS, "signed")
        return 0 if low <= self.low and self.high <= high else low - self.low

    def same(self, other: object) -> bool:
        """Whether `other` is a grid with equal scales, axis and range."""
        return (
            isinstance(other, Grid)
            and (self.axis, self.low, self.high) == (other.axis, other.low, other.high)
            and np.array_equal(self.scale, other.scale)
        )

    @cached_property
    def quantizer(self) -> Uniform:
        """The quantizer of these codes, which alone knows the formula; its zero point is 0."""
        scale = torch.tensor(self.scale)
        return Uniform(scale, torch.zeros_like(scale), self.bits, self.low, self.high, self.axis)

    def broadcast_scale(self, rank: int) -> np.ndarray:
        """The scale, shaped to be broadcast against a tensor of `rank` dimensions."""
        return along(self.quantizer.scale, self.axis, rank).numpy()

    def steps(self, value: np.ndarray) -> np.ndarray:
        """`value` in multiples of the scale, not yet rounded, clipped."""
        return self.quantizer.steps(torch.tensor(value)).numpy()

    def codes(self, value: np.ndarray) -> np.ndarray:
        """The multiple of the scale that stands for each of `value`, float32."""
        return self.quantizer.codes(torch.tensor(value)).numpy()

    def values(self, value: np.ndarray) -> np.ndarray:
        """`value` on the grid, float32: what the simulation computes with."""
        return self.quantizer(torch.tensor(value)).numpy()

    def repeated(self, channels: int, axis: int) -> Grid:
        """The same codes for a per-tensor grid, written as `channels` equal scales along `axis`."""
        return Grid(np.full(channels, self.scale, np.float32), axis, self.low, self.high)

    def times(self, factors: np.ndarray | np.float32) -> Grid:
        """The same codes for values multiplied by `factors`: 0-d, or [out] along the second axis."""
        axis = self.axis if np.ndim(factors) == 0 else 1
        return Grid(np.asarray(self.scale * factors, np.float32), axis, self.low, self.high)

    def unit(self) -> Grid:
        """Of what comes divided by the scale: steps of one."""
        return Grid(np.array(1, np.float32), None, self.low, self.high)

    def transposed(self) -> Grid:
        """Of the transposed matrix."""
        return self if self.axis is None else Grid(self.scale, 1 - self.axis, self.low, self.high)
