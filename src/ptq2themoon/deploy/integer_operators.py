"""LayerNorm and softmax on integers, written in standard operators: the simulation's numbers to the bit.

As `quantize.integer_arithmetic`, whole numbers are held as float64. Runtimes have no kernel for either: it is
what a faithful model computes, and slow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ptq2themoon.deploy.writer import Writer
from ptq2themoon.quantize.integer_arithmetic import (
    FACTOR_BITS,
    LARGEST_SHIFT,
    Arithmetic,
    ExponentialConstants,
    IntegerSoftmax,
)
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.quantizers.base import along

FAITHFUL = "integers, held as float64 in operators that the runtime has: it has no kernel for them"
FAST = "its integers are those of the simulation: the runtime computes it in floating point"
LAST = -1


def write_integers(
    writer: Writer,
    arithmetic: Arithmetic,
    name: str,
    inputs: list[str],
    shape: tuple[int | str, ...],
    quantizer: Quantizer,
    output: str,
) -> None:
    """Write the operator `name` under the name of its output.

    Args:
        inputs: names in the new graph; the first is on the grid of `quantizer`.
        shape: of the first; its last dimension is known.
    """
    write = _softmax if isinstance(arithmetic, IntegerSoftmax) else _layernorm
    write(_Numbers(writer, name), arithmetic, inputs, shape, quantizer, output)


class _Numbers:
    """Adds operators on float64, all under one stem."""

    def __init__(self, writer: Writer, stem: str) -> None:
        self.writer, self._stem = writer, stem

    def number(self, value: npt.ArrayLike, dtype: type = np.float64) -> str:
        return self.writer.constant(f"{self._stem}/number", np.asarray(value, dtype))

    def __call__(self, op_type: str, *inputs: str, output: str | None = None) -> str:
        return self.writer.add(op_type, list(inputs), f"{self._stem}/{op_type.lower()}", output)

    def cast(self, tensor: str, dtype: type) -> str:
        return self.writer.cast(f"{self._stem}/cast", tensor, dtype)

    def total(self, tensor: str) -> str:
        return self("ReduceSum", tensor, self.number([LAST], np.int64))

    def largest(self, tensor: str) -> str:
        return self("ReduceMax", tensor, self.number([LAST], np.int64))

    def whole(self, tensor: str, scale: Tensor) -> str:
        steps = self("Round", self("Div", tensor, self.number(scale.numpy(), np.float32)))
        return self.cast(steps, np.float64)

    def choice(self, condition: str, yes: str, no: str) -> str:
        return self("Where", condition, yes, no)

    def power_below(self, value: str) -> tuple[str, str]:
        """(e, 2^e) with 2^e <= value < 2^(e + 1), of values above 0; the logarithm is put right by one."""
        two, one = self.number(2.0), self.number(1.0)
        e = self("Floor", self("Div", self("Log", value), self.number(np.log(2))))
        power = self("Pow", two, e)
        e = self.choice(self("Less", value, power), self("Sub", e, one), e)
        power = self("Pow", two, e)
        again = self("GreaterOrEqual", value, self("Mul", power, two))
        e = self.choice(again, self("Add", e, one), e)
        return e, self("Pow", two, e)


def _layernorm(
    n: _Numbers,
    arithmetic: Arithmetic,
    inputs: list[str],
    shape: tuple[int | str, ...],
    quantizer: Quantizer,
    output: str,
) -> None:
    assert not isinstance(arithmetic, IntegerSoftmax)
    one, half, step = n.number(1.0), n.number(0.5), n.number(arithmetic.output_scale)
    count = n.number(float(shape[-1]))
    x = n.whole(inputs[0], quantizer.scale.min())
    gamma = n.cast(inputs[1], np.float64)
    beta = n.cast(inputs[2], np.float64) if len(inputs) > 2 and inputs[2] else n.number(0.0)
    total = n.total(x)
    variance = n("Sub", n("Mul", count, n.total(n("Mul", x, x))), n("Mul", total, total))
    root = n("Floor", n("Sqrt", variance))
    above = n("Greater", n("Mul", root, root), variance)
    root = n("Max", n.choice(above, n("Sub", root, one), root), one)
    factor = n("Div", n("Mul", gamma, count), n("Mul", root, step))
    size = n("Abs", factor)
    some = n("Greater", size, n.number(0.0))
    e, _ = n.power_below(n.choice(some, size, one))
    shift = n("Clip", n("Sub", n.number(FACTOR_BITS - 1.0), e), n.number(0.0), n.number(LARGEST_SHIFT))
    power = n("Pow", n.number(2.0), n.choice(some, shift, n.number(LARGEST_SHIFT)))
    mantissa = n("Min", n("Floor", n("Mul", size, power)), n.number(2.0**FACTOR_BITS - 1))
    offset = n("Div", n("Sub", beta, n("Div", n("Mul", gamma, total), root)), step)
    offset = n("Round", n("Mul", offset, power))
    product = n("Add", n("Mul", n("Mul", n("Sign", factor), mantissa), x), offset)
    codes = n.cast(n("Floor", n("Add", n("Div", product, power), half)), np.float32)
    n("Mul", codes, n.number(arithmetic.output_scale, np.float32), output=output)


def _softmax(
    n: _Numbers,
    arithmetic: Arithmetic,
    inputs: list[str],
    shape: tuple[int | str, ...],
    quantizer: Quantizer,
    output: str,
) -> None:
    assert isinstance(arithmetic, IntegerSoftmax)
    rank, one, half = len(shape), n.number(1.0), n.number(0.5)
    found = ExponentialConstants.of(quantizer.scale, int(shape[-1]))
    left, ln2, offset, constant = (
        n.number(along(each, quantizer.axis, rank).numpy())
        for each in (found.left, found.ln2, found.offset, found.constant)
    )
    x = n("Mul", n.whole(inputs[0], along(quantizer.scale, quantizer.axis, rank)), left)
    x = n("Sub", x, n.largest(x))
    q = n("Floor", n("Div", n("Neg", x), ln2))
    r = n("Add", n("Add", x, n("Mul", q, ln2)), offset)
    polynomial = n("Add", n("Mul", r, r), constant)
    power = n("Pow", n.number(2.0), n("Sub", n.number(found.n), q))
    exponentials = n("Floor", n("Mul", polynomial, power))
    quotient = n("Div", n.total(exponentials), n("Max", exponentials, one))
    quotient = n("Floor", n("Add", quotient, half))
    e, power = n.power_below(quotient)
    more = n("GreaterOrEqual", quotient, n("Mul", power, n.number(1.5)))
    codes = n("Add", e, n.cast(more, np.float64))
    seen = n("Greater", exponentials, n.number(0.0))
    seen = n("And", seen, n("Less", codes, n.number(2.0**arithmetic.bits)))
    values = n("Pow", n.number(2.0), n("Neg", codes))
    n.writer.add("Mul", [n.cast(values, np.float32), n.cast(seen, np.float32)], f"{output}/values", output)
