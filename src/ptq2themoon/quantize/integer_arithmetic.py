"""Operators that the simulation computes on integers, in the place of floating point.

Lin et al., FQ-ViT, IJCAI 2022, arXiv 2111.13824, sections 3.2 and 3.3; Kim et al., I-BERT, ICML 2021,
arXiv 2101.01321, algorithm 2, for the exponential. An operator's integers are those of the quantizer of its
first input. They are held as float64, which is exact below 2^53, and no sum reaches that; so a runtime
without shifts of integers gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptq2themoon.quantize.quantizers.base import along

FACTOR_BITS = 8  # of LayerNorm's multiplier M
LARGEST_SHIFT = 31  # of LayerNorm's N
EXPONENT_SHIFT = 30  # bits that the exponential of 0 stands above that of a score too small to count
WORD = 52  # bits of a sum
LN2, SQUARE, SHIFT, CONSTANT = math.log(2), 0.3585, 1.353, 0.344  # exp(r) for r in (-ln 2, 0]


@dataclass(frozen=True)
class IntegerLayerNorm:
    """LayerNorm over the last axis; its output is whole multiples of `output_scale`.

    X are integers of one scale: codes less the zero point, shifted by each channel's factor. With C channels:

        root = floor(sqrt(C sum X^2 - (sum X)^2)), at least 1: C times the standard deviation
        A = gamma C / (root s_out),  B = round((beta - gamma sum X / root) / s_out 2^N)
        N = clamp(7 - floor(log2 |A|), 0, 31),  M = floor(|A| 2^N), at most 255
        out = floor((sign(A) M X + B) / 2^N + 1/2)

    A, as in the paper, is a real number that is computed for each token.
    """

    output_scale: float
    kind: ClassVar[str] = "integer_layernorm"

    def __call__(self, values: list[Any], scale: Tensor, axis: int | None) -> Tensor:
        """float32, the shape of the input: whole numbers times `output_scale`.

        Args:
            values: input on the grid, gamma, beta (may be left out).
            scale: of the input, 0-d or [channels], these powers of two apart.
        """
        x, gamma, *more = values
        integers = whole(x, scale.min())
        gamma = gamma.double()
        beta = more[0].double() if more and more[0] is not None else torch.zeros_like(gamma)
        count, total = integers.shape[-1], integers.sum(-1, keepdim=True)
        root = whole_root(count * integers.square().sum(-1, keepdim=True) - total.square())
        factor = gamma * count / (root * self.output_scale)
        mantissa, shift = multiplier(factor.abs())
        offset = ((beta - gamma * total / root) / self.output_scale * shift).round()
        product = factor.sign() * mantissa * integers + offset
        return (product / shift + 0.5).floor().float() * self.output_scale


@dataclass(frozen=True)
class IntegerSoftmax:
    """Softmax whose output is 2^-code, or 0, with an integer exponential (log-int-softmax).

    X are integers of scale s, less the row's largest. -X = q ln2 + (-r), q whole and r in (-ln2, 0]:

        l = floor(ln 2 / s),  q = floor(-X / l),  r = X + q l
        exp = floor(((r + floor(1.353 / s))^2 + floor(0.344 / (0.3585 s^2))) 2^(n - q)),  n = 30
        R = floor(sum exp / exp + 1/2),  code = floor(log2 R), one more from 1.5 2^code on

    A code of 2^bits or more stands for 0. Scores with s above ln 2 are shifted left first, until s is not:
    l would be 0. Where a sum would need more than 52 bits, n is smaller.
    """

    bits: int
    kind: ClassVar[str] = "integer_softmax"

    def __call__(self, values: list[Any], scale: Tensor, axis: int | None) -> Tensor:
        """float32, the shape of the input; softmax is over the last axis.

        Args:
            values: scores on the grid.
            scale: of the scores, 0-d or one for each index of `axis`.
        """
        (x,) = values
        exponentials = integer_exponentials(x, scale, axis)
        divisor = exponentials.clamp(min=1)
        codes = rounded_log2((exponentials.sum(-1, keepdim=True) / divisor + 0.5).floor())
        there = (exponentials > 0) & (codes < 2**self.bits)
        return torch.where(there, torch.exp2(-codes.float()), 0.0)


@dataclass(frozen=True)
class ExponentialConstants:
    """Of the integer exponential, all whole numbers as float64, 0-d or one for each head.

    Attributes:
        left: what scores are multiplied by: a power of two.
        ln2, offset, constant: l and the two of the polynomial.
        n: the shift of the exponential of 0.
    """

    left: Tensor
    ln2: Tensor
    offset: Tensor
    constant: Tensor
    n: int

    @classmethod
    def of(cls, scale: Tensor, columns: int) -> ExponentialConstants:
        """For scores of this scale with so many in a row."""
        left = 2.0 ** (scale.double() / LN2).log2().ceil().clamp(min=0)  # 1 at scales of 8 bits
        units = scale.double() / left
        offset = (SHIFT / units).floor()
        constant = (CONSTANT / SQUARE / units.square()).floor()
        largest = int((offset.square() + constant).max())
        n = min(EXPONENT_SHIFT, WORD - largest.bit_length() - columns.bit_length())
        return cls(left, (LN2 / units).floor(), offset, constant, n)


def integer_exponentials(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """exp(x - largest x of the last axis), in one unit for each row."""
    constants = ExponentialConstants.of(scale, x.shape[-1])
    left, ln2, offset, constant = (
        along(each.to(x.device), axis, x.ndim)
        for each in (constants.left, constants.ln2, constants.offset, constants.constant)
    )
    integers = whole(x, along(scale, axis, x.ndim)) * left
    integers = integers - integers.amax(-1, keepdim=True)
    q = (-integers / ln2).floor()
    polynomial = (integers + q * ln2 + offset).square() + constant
    return (polynomial * 2.0 ** (constants.n - q)).floor()


def whole(x: Tensor, scale: Tensor) -> Tensor:
    """What multiples of the scale `x` is, which lies on the grid; float64."""
    return (x / scale.to(x.device)).round().double()


def whole_root(value: Tensor) -> Tensor:
    """The square root rounded down, at least 1."""
    root = value.sqrt().floor()
    return torch.where(root.square() > value, root - 1, root).clamp(min=1)


def rounded_log2(quotient: Tensor) -> Tensor:
    """The position of the leading one, one more where the bit after it is one too; of numbers from 1."""
    mantissa, exponent = torch.frexp(quotient)
    return exponent.double() - 1 + (mantissa >= 0.75)


def multiplier(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 2^N) of factors from 0: M / 2^N has `FACTOR_BITS` bits and is at most the factor."""
    _, exponent = torch.frexp(factor)  # log2 rounded down is one less
    shift = (FACTOR_BITS - exponent.double()).clamp(0, LARGEST_SHIFT)
    power = 2.0 ** torch.where(factor > 0, shift, LARGEST_SHIFT)
    return (factor * power).floor().clamp(max=2**FACTOR_BITS - 1), power


Arithmetic = IntegerLayerNorm | IntegerSoftmax
KINDS: dict[str, type[Arithmetic]] = {kind.kind: kind for kind in (IntegerLayerNorm, IntegerSoftmax)}


def described(arithmetic: Arithmetic) -> dict[str, Any]:
    """For a file: kind and settings."""
    return {"kind": arithmetic.kind, **asdict(arithmetic)}


def read(values: Mapping[str, Any]) -> Arithmetic:
    """What `described` gave; raises `ValueError` for anything else."""
    rest = dict(values)
    kind = KINDS.get(str(rest.pop("kind", None)))
    if kind is None:
        raise ValueError(f"arithmetic {values.get('kind')!r} is none of {', '.join(KINDS)}")
    number = rest.get("output_scale" if kind is IntegerLayerNorm else "bits")
    if len(rest) != 1 or isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"arithmetic {kind.kind} has one number, not {', '.join(rest) or 'nothing'}")
    if kind is IntegerSoftmax and isinstance(number, int) and 2 <= number <= 8:
        return IntegerSoftmax(number)
    if kind is IntegerLayerNorm and 0 < number < math.inf:
        return IntegerLayerNorm(number)
    raise ValueError(f"arithmetic {kind.kind} with {number!r}")
