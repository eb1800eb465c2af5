"""Power-of-two scales, so that hardware applies each by a shift of bits.

A scale s of a uniform quantizer becomes 2^k, with k the floor of log2 s, its ceiling, or the nearest whole
number. PPQ's policy `POWER_OF_2` has such scales, and P2-ViT (Shi, Cheng, Mao and Wang, "Power-of-Two
Post-Training Quantization and Acceleration for Fully Quantized Vision Transformer", IEEE TVLSI 2024, arXiv
2405.19915), whose adaptive rounding takes the neighbour of least quantization error:

    up       all values that the observer's range covers still have a code; steps up to twice as wide
    down     steps no wider than before; up to half of the range is clipped
    nearest  whichever is nearer to log2 s
    mse      whichever leaves the tensor (or the channel) less squared error: weights as they are, activations
             on the calibration images in floating point

The range's lower end keeps its code: a zero point is scaled, rounded and clipped with its scale.

Where this differs from P2-ViT: its smoothing of outliers, its mixed precision and its hardware are left out.
Levels of weights that are powers of two are kinds of their own, `power_of_two` and `apot`, for rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from ptq2themoon.methods.base import LAST_SCALES, Method, Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

Rounding = Literal["mse", "nearest", "down", "up"]


class PowerOfTwoSettings(Strict):
    """How a scale is rounded."""

    rounding: Rounding = "mse"
    """Of the exponent: up or down by squared error, to the nearest, or always one way."""


class PowerOfTwo(Method):
    """Of all tensors that the recipe quantizes with kind uniform."""

    Settings = PowerOfTwoSettings
    settings: PowerOfTwoSettings
    stage = Stage.POWERS

    def decides(self) -> dict[str, str]:
        """That scales are powers of two in the end."""
        return {LAST_SCALES: ""}

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Round each scale, or choose among both neighbours by the error on weights and images."""
        uniform = {slot: t for slot, t in model.slots() if t.ready().kind == "uniform"}
        if not uniform:
            raise UserError(
                "power_of_two: the recipe quantizes nothing with kind uniform; leave the method out"
            )
        both = {slot: _neighbours(tensor.ready()) for slot, tensor in uniform.items()}  # type: ignore[arg-type]
        chosen = _better(model, tools, uniform, both) if self.settings.rounding == "mse" else {}
        for slot, tensor in uniform.items():
            one: Uniform = tensor.ready()  # type: ignore[assignment]
            down, up = both[slot]
            if self.settings.rounding == "nearest":
                upwards = up.scale / one.scale < one.scale / down.scale
            elif self.settings.rounding == "mse":
                upwards = chosen[slot]
            else:
                upwards = (one.scale > 0) & (self.settings.rounding == "up")
            tensor.quantizer = _mixed(down, up, upwards)


def _neighbours(quantizer: Uniform) -> tuple[Uniform, Uniform]:
    """With the powers of two below and above each scale; equal where it is one itself."""
    exponent = quantizer.scale.double().log2()
    down, up = (_with_scale(quantizer, whole.exp2()) for whole in (exponent.floor(), exponent.ceil()))
    return down, up


def _with_scale(quantizer: Uniform, scale: Tensor) -> Uniform:
    """The lower end of the range keeps its code."""
    low = quantizer.lowest.double() * quantizer.scale.double()
    zero_point = quantizer.zero_point
    if not quantizer.symmetric:
        bounds = quantizer.quant_min, quantizer.quant_max
        zero_point = (quantizer.quant_min - low / scale).round().clamp(*bounds).float()
    return quantizer.changed(scale.float(), zero_point)


def _mixed(down: Uniform, up: Uniform, upwards: Tensor) -> Uniform:
    """`up` where a scale goes upwards, else `down`."""
    return down.changed(up.scale.where(upwards, down.scale), up.zero_point.where(upwards, down.zero_point))


def _better(
    model: QuantizedModel,
    tools: Tools,
    uniform: dict[Slot, QuantizedTensor],
    both: dict[Slot, tuple[Uniform, Uniform]],
) -> dict[Slot, Tensor]:
    """Where the larger scale leaves less squared error than the smaller one, bool of the scale's shape."""
    errors: dict[Slot, list[Tensor]] = {}

    def see(slot: Slot, value: Tensor) -> None:
        axis = uniform[slot].axis
        found = [_squares(quantizer(value) - value, axis) for quantizer in both[slot]]
        before = errors.get(slot)
        errors[slot] = found if before is None else [a + b for a, b in zip(before, found, strict=True)]

    tools.show(model, uniform, see)
    return {slot: up < down for slot, (down, up) in errors.items()}


def _squares(error: Tensor, axis: int | None) -> Tensor:
    """Sum of squares, 0-d or of each index along `axis`, float64."""
    squares = error.double().square()
    if axis is None:
        return squares.sum().cpu()
    others: Iterable[int] = [i for i in range(error.ndim) if i != axis]
    return (squares.sum(tuple(others)) if others else squares).cpu()


METHOD = PowerOfTwo
