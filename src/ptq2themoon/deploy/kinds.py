"""How a runtime expresses each kind of quantizer: one row of `ROWS` per kind.

Integers of one scale are a `Grid`; integer kernels know nothing else. The rest is a `Formula` of standard
float operators, with the simulation's values up to rounding ties. A kind without a row is not quantized in
the INT8 model, and deploy.json says so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.quantize.quantizers import LogSqrt2, Quantizer, Uniform
from ptq2themoon.quantize.quantizers.adalog import AdaLog
from ptq2themoon.quantize.quantizers.apot import APoT
from ptq2themoon.quantize.quantizers.base import along
from ptq2themoon.quantize.quantizers.base_levels import Levels
from ptq2themoon.quantize.quantizers.base_powers import Powers as LogarithmicQuantizer
from ptq2themoon.quantize.quantizers.log2 import Log2
from ptq2themoon.quantize.quantizers.power_of_two import PowerOfTwo
from ptq2themoon.quantize.quantizers.twin_uniform import TwinUniform
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor

if TYPE_CHECKING:
    from ptq2themoon.deploy.writer import Writer


class Formula(ABC):
    """Quantization that is no integer of one scale.

    Attributes:
        kind: of the quantizer.
        why: what products that read it run in floating point for.
    """

    kind: str
    why: str

    @abstractmethod
    def written(self, writer: Writer, tensor: str, rank: int, output: str | None) -> str:
        """Add the operators that quantize `tensor` of the new graph; returns the result's name."""

    @abstractmethod
    def values(self, value: np.ndarray) -> np.ndarray:
        """`value` quantized, float32."""

    @abstractmethod
    def steps(self, value: np.ndarray) -> np.ndarray:
        """`value` in codes, not yet rounded, clipped to their range."""

    @abstractmethod
    def same(self, other: object) -> bool:
        """Whether quantizing by `other` after this changes nothing."""


@dataclass(frozen=True, eq=False)
class Uneven(Formula):
    """A uniform quantizer of channels with zero points of their own."""

    quantizer: Uniform
    kind = Uniform.kind
    why = "channels with zero points of their own: no integer kernel can take them out of the sum"

    def _bounds(self) -> dict[str, Tensor]:
        """Scale, and least and largest multiple of it; float32 [channels]."""
        return {
            "scale": self.quantizer.scale,
            "low": self.quantizer.lowest,
            "high": self.quantizer.highest,
        }

    def written(self, writer: Writer, tensor: str, rank: int, output: str | None) -> str:
        """Add division, rounding, clipping per channel and multiplication; returns the result's name."""
        scale, low, high = (
            writer.constant(f"{tensor}/{name}", along(value, self.quantizer.axis, rank).numpy())
            for name, value in self._bounds().items()
        )
        codes = writer.add("Div", [tensor, scale], f"{tensor}/divide")
        codes = writer.add("Round", [codes], f"{tensor}/round")
        codes = writer.add("Max", [codes, low], f"{tensor}/max")
        codes = writer.add("Min", [codes, high], f"{tensor}/min")
        return writer.add("Mul", [codes, scale], f"{tensor}/multiply", output)

    def values(self, value: np.ndarray) -> np.ndarray:
        return self.quantizer(torch.tensor(value)).numpy()

    def steps(self, value: np.ndarray) -> np.ndarray:
        return self.quantizer.steps(torch.tensor(value)).numpy()

    def same(self, other: object) -> bool:
        """Whether `other` has equal scales, bounds and axis."""
        return (
            isinstance(other, Uneven)
            and self.quantizer.axis == other.quantizer.axis
            and all(torch.equal(mine, other._bounds()[name]) for name, mine in self._bounds().items())
        )


@dataclass(frozen=True, eq=False)
class Powers(Formula):
    """A logarithmic kind: `table` [codes + 1] holds the value of each code, the last one 0.

    Attributes:
        table: its first value is the scale.
        codes_per_octave: how many codes later a value is half as large.
    """

    kind: str
    table: np.ndarray
    codes_per_octave: float

    @property
    def why(self) -> str:  # type: ignore[override]
        """What the product runs in floating point for."""
        what = "the square root of two" if self.kind == LogSqrt2.kind else "one base"
        return (
            f"{'activations' if self.kind == AdaLog.kind else 'softmax output'} as {self.kind}: "
            f"powers of {what} are no integers of one scale, "
            "so this product runs in floating point"
        )

    @classmethod
    def of(cls, quantizer: LogarithmicQuantizer) -> Powers:
        """The formula of a calibrated quantizer of a logarithmic kind."""
        return cls(quantizer.kind, quantizer.table().numpy(), quantizer.codes_per_octave)

    def written(self, writer: Writer, tensor: str, rank: int, output: str | None) -> str:
        """A value of 0 has an infinite logarithm, which is clipped to the code of 0."""

        def number(name: str, value: float) -> str:
            return writer.constant(f"{tensor}/{name}", np.array(value, np.float32))

        share = writer.add("Div", [tensor, number("scale", float(self.table[0]))], f"{tensor}/divide")
        logarithm = writer.add("Log", [writer.add("Relu", [share], f"{tensor}/positive")], f"{tensor}/log")
        codes = writer.add(
            "Mul", [logarithm, number("base", -self.codes_per_octave / math.log(2))], f"{tensor}/codes"
        )
        rounded = writer.add("Round", [codes], f"{tensor}/round")
        bounds = [number("first", 0), number("last", len(self.table) - 1)]
        clipped = writer.add("Clip", [rounded, *bounds], f"{tensor}/clip")
        whole = writer.cast(f"{tensor}/whole", clipped, np.int64)
        return writer.add("Gather", [writer.constant(f"{tensor}/table", self.table), whole], tensor, output)

    def values(self, value: np.ndarray) -> np.ndarray:
        """The table's value for each element of `value`."""
        return self.table[np.rint(self.steps(value)).astype(np.int64)]

    def steps(self, value: np.ndarray) -> np.ndarray:
        """Codes of `value`, not yet rounded: the logarithm of its share of the scale, clipped."""
        with np.errstate(divide="ignore"):
            codes = -self.codes_per_octave * np.log2(np.maximum(value / self.table[0], 0))
        return np.clip(codes, 0, len(self.table) - 1)

    def same(self, other: object) -> bool:
        """Whether `other` has an equal table and rounds the same logarithm."""
        return (
            isinstance(other, Powers)
            and self.codes_per_octave == other.codes_per_octave
            and np.array_equal(self.table, other.table)
        )


@dataclass(frozen=True, eq=False)
class Twin(Formula):
    """twin_uniform: two roundings of each value, of which a comparison picks one."""

    quantizer: TwinUniform
    kind = TwinUniform.kind
    why = (
        "two ranges of different steps in one tensor: no integers of one scale, "
        "so this product runs in floating point"
    )

    def written(self, writer: Writer, tensor: str, rank: int, output: str | None) -> str:
        """Add Div, Round, Clip and Mul for each range, and Where; returns the result's name."""

        def number(name: str, value: float) -> str:
            return writer.constant(f"{tensor}/{name}", np.array(value, np.float32))

        low, high, least, most = self.quantizer.bounds
        rounded = []
        for name, scale, *bounds in (
            ("fine", self.quantizer.fine_scale, low, high),
            ("coarse", self.quantizer.scale, least, most),
        ):
            step = number(f"{name}/scale", float(scale))
            ends = [
                number(f"{name}/{end}", bound) for end, bound in zip(("low", "high"), bounds, strict=True)
            ]
            codes = writer.add("Div", [tensor, step], f"{tensor}/{name}/divide")
            codes = writer.add("Round", [codes], f"{tensor}/{name}/round")
            codes = writer.add("Clip", [codes, *ends], f"{tensor}/{name}/clip")
            rounded.append(writer.add("Mul", [codes, step], f"{tensor}/{name}/multiply"))
        split = number("split", float(self.quantizer.split))
        is_fine = writer.add("LessOrEqual", [tensor, split], f"{tensor}/is_fine")
        return writer.add("Where", [is_fine, *rounded], tensor, output)

    def values(self, value: np.ndarray) -> np.ndarray:
        return self.quantizer(torch.tensor(value)).numpy()

    def steps(self, value: np.ndarray) -> np.ndarray:
        """Codes of the fine range, and above them those of the other."""
        low, high, least, most = self.quantizer.bounds
        fine = np.clip(value / self.quantizer.fine_scale.numpy(), low, high)
        coarse = high + np.clip(value / self.quantizer.scale.numpy(), least, most)
        return np.where(self.quantizer.is_fine(torch.tensor(value)).numpy(), fine, coarse)

    def same(self, other: object) -> bool:
        """Whether `other` has equal ranges."""
        return isinstance(other, Twin) and self.quantizer == other.quantizer


class Unwritten(Formula):
    """A kind without a row."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.why = f"kind {kind!r} has no expression in a runtime: what it quantizes stays as it is"

    def written(self, writer: Writer, tensor: str, rank: int, output: str | None) -> str:
        """Add an Identity at most: `tensor` stays in floating point."""
        return tensor if output is None else writer.add("Identity", [tensor], tensor, output)

    def values(self, value: np.ndarray) -> np.ndarray:
        """`value`, unchanged."""
        return value

    def steps(self, value: np.ndarray) -> np.ndarray:
        """`value`, unchanged, for it has no codes."""
        return value

    def same(self, other: object) -> bool:
        """False: without a formula nothing shows that `other` changes nothing."""
        return False


class OnLevels(Unwritten):
    """Weights on uneven levels, which are written as the numbers that they are, or not rounded at all."""

    def __init__(self, quantizer: Levels) -> None:
        super().__init__(quantizer.kind)
        self._quantizer = quantizer
        self.why = f"weights as {quantizer.kind}: no integers of one scale, so products run in floating point"

    def values(self, value: np.ndarray) -> np.ndarray:
        """`value` on its levels."""
        return self._quantizer(torch.tensor(value)).numpy()


Form = Grid | Formula
Forms = Mapping[tuple[str, int], Form]  # by operand and position


def _uniform(quantizer: Uniform) -> Form:
    lows, highs = (ends.numpy().astype(np.float32) for ends in (quantizer.lowest, quantizer.highest))
    scale = quantizer.scale.detach().cpu().numpy().astype(np.float32)
    if quantizer.axis is None or not scale.ndim:
        return Grid(scale, None, int(lows), int(highs))
    if len({*lows.tolist()}) > 1:
        return Uneven(quantizer)
    return Grid(scale, quantizer.axis, int(lows[0]), int(highs[0]))


ROWS: dict[str, Callable[..., Form]] = {
    Uniform.kind: _uniform,
    LogSqrt2.kind: Powers.of,
    Log2.kind: Powers.of,
    AdaLog.kind: Powers.of,
    TwinUniform.kind: Twin,
    PowerOfTwo.kind: OnLevels,
    APoT.kind: OnLevels,
}


def form_of(tensor: QuantizedTensor) -> Form:
    """How a calibrated tensor's quantizer is expressed."""
    quantizer: Quantizer = tensor.ready()
    row = ROWS.get(quantizer.kind)
    return Unwritten(quantizer.kind) if row is None else row(quantizer)


def forms_of(item: QuantizedOperator) -> Forms:
    """Of all tensors of an operator."""
    return {(tensor.operand, tensor.position): form_of(tensor) for tensor in item.tensors}
