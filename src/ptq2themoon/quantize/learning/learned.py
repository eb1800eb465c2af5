"""What stands in the place of a quantizer while something of it is learned."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.quantize.quantizers.base import along, clip

STRETCH = (-0.1, 1.1)  # AdaRound's gamma and zeta: how far the sigmoid is stretched before it is clipped
HARD = 0.01  # a share of rounding up this near to 0 or 1 will not change its mind


class Learned(Protocol):
    """Of a quantizer, all that a trainable program calls."""

    def straight_through(self, value: Tensor) -> Tensor:
        """`value` quantized, with gradients."""


class SoftRounding:
    """A weight whose rounding up or down is learned: AdaRound, Nagel et al. 2020, equations 21 to 24.

    scale * clip(floor(w / scale) + h(v), lowest, highest), h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1). At first
    h is what is left of w / scale after rounding down, so that the soft weight is the weight itself.

    Attributes:
        v: float32, of the weight's shape, what is learned.
    """

    def __init__(self, quantizer: Uniform, weight: Tensor) -> None:
        scale, low, high = (
            along(each.to(weight.device), quantizer.axis, weight.ndim)
            for each in (quantizer.scale, quantizer.lowest, quantizer.highest)
        )
        self._scale, self._low, self._high = scale, low, high
        steps = weight / scale
        self._floor = steps.floor()
        left = (steps - self._floor - STRETCH[0]) / (STRETCH[1] - STRETCH[0])
        self.v = torch.logit(left).detach().clone()

    def share(self) -> Tensor:
        """h(v): how far each value is rounded up, 0 to 1."""
        low, high = STRETCH
        return (torch.sigmoid(self.v) * (high - low) + low).clamp(0, 1)

    def straight_through(self, value: Tensor) -> Tensor:
        """The soft weight."""
        return self._on_grid(self.share())

    def hard(self) -> Tensor:
        """The weight on its grid: each value rounded to the side that its share is nearer to."""
        return self._on_grid((self.v >= 0).to(self.v.dtype)).detach()

    def undecided(self, beta: float) -> Tensor:
        """AdaRound's regulariser, equation 24: the sum of 1 - |2 h - 1|^beta, 0 where all is hard."""
        return (1 - (2 * self.share() - 1).abs() ** beta).sum()

    @property
    def settled(self) -> bool:
        """Whether each value is rounded up or down for good."""
        share = self.share()
        return bool(((share < HARD) | (share > 1 - HARD)).all())

    def _on_grid(self, up: Tensor) -> Tensor:
        return clip(self._floor + up, self._low, self._high) * self._scale


class Dropping:
    """An activation that is quantized in some of its values only: QDrop, Wei et al. 2022, equation 8.

    Each value stays in floating point with the probability `drop`, drawn anew at each call.

    Attributes:
        quantizer: whose scale may require a gradient.
    """

    def __init__(self, quantizer: Quantizer, drop: float, generator: torch.Generator) -> None:
        self.quantizer, self._drop, self._generator = quantizer, drop, generator

    def straight_through(self, value: Tensor) -> Tensor:
        """`value`, some of it quantized."""
        found = self.quantizer.straight_through(value)
        return mixed(value, found, self._drop, self._generator)


def mixed(floating: Tensor, quantized: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Each value from `floating` with the probability `drop`, else from `quantized`.

    Args:
        generator: on the CPU, so that every device draws the same.
    """
    if not drop:
        return quantized
    if drop == 1:
        return floating
    kept = (torch.rand(floating.shape, generator=generator) < drop).to(floating.device)
    return torch.where(kept, floating, quantized)
