"""How far an operator's output is from what it should be, by sums that add up over batches.

A score is given one piece of the output after another and keeps a few float64 sums for each group of values
that share a scale, so no output is kept. With y the output in floating point, y^ the output with quantized
operands, and e = y^ - y, a score is one of

    mse       sum of e^2, or of w e^2 where each value has a weight w (the squared gradient of a loss)
    l2        sum over images of the L2 norm of an image's e
    cosine    1 - <y, y^> / (|y| |y^|)
    pearson   1 - the correlation of y and y^

The last two are differences of numbers near 1. They are computed from e, so that 8 bits lose no digits:
1 - cos = (|e|^2 - (|y^| - |y|)^2) / (2 |y| |y^|). They do not see a factor of y^, so candidates of one
channel that have equal codes would be equally good: to decide between such, |e|^2 / |y|^2 is added with a
weight of 1e-4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

TIES = 1e-4  # weight of the relative squared error beside a score that does not see a factor
TINY = 1e-300


class Score(ABC):
    """A loss for each group of an operator's values; lower is better.

    Attributes:
        additive: whether the loss only grows as more images are seen, so that a part of it is a lower bound.
        divisible: whether outputs may be given in pieces that cut through the windows of an image.
    """

    additive: ClassVar[bool]
    divisible: ClassVar[bool] = True

    def of_wanted(self, wanted: Tensor, axis: int | None) -> Tensor:
        """Sums of y alone, float64 [sums, groups]; the same for every candidate."""
        return torch.zeros(0, _groups(wanted, axis), dtype=torch.float64)

    @abstractmethod
    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        """Sums of y^ and y, float64 [sums, groups].

        Args:
            found: y^, which may be overwritten.
            weight: of each value, for scores that take one.
            axis: whose indices are groups; None: all values are one group.
        """

    @abstractmethod
    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        """[groups], from the sums over all that was seen."""


class Squared(Score):
    """Sum of squared errors, weighted where weights are given."""

    additive = True

    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        squares = found.sub_(wanted).square_()
        return total(squares if weight is None else squares.mul_(weight), axis)[None]

    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        return of_found[0]


class Norms(Score):
    """Sum over images, or windows, of the L2 norm of the error: one bad image weighs less than by squares."""

    additive = True

    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        squares = found.sub_(wanted).square_()
        others = [i for i in range(1, squares.ndim) if axis is None or i != axis % squares.ndim]
        norms = (squares.sum(others) if others else squares).sqrt_()
        return total(norms, None if axis is None else -1)[None]

    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        return of_found[0]


class Cosine(Score):
    """1 - cosine of y and y^, all values of a group as one vector."""

    additive = False

    def of_wanted(self, wanted: Tensor, axis: int | None) -> Tensor:
        return total(wanted.square(), axis)[None]

    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        length = total(found.square(), axis)
        return torch.stack([length, total(found.sub_(wanted).square_(), axis)])

    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        return _one_minus(of_wanted[0], *of_found[:2])


class Pearson(Score):
    """1 - correlation of y and y^, all values of a group as one vector."""

    additive = False

    def of_wanted(self, wanted: Tensor, axis: int | None) -> Tensor:
        sums = total(wanted, axis)
        count = torch.full_like(sums, wanted.numel() / len(sums))
        return torch.stack([total(wanted.square(), axis), sums, count])

    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        length, sums = total(found.square(), axis), total(found, axis)
        error = found.sub_(wanted)
        off = total(error, axis)
        return torch.stack([length, total(error.square_(), axis), sums, off])

    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        squares, sums, count = of_wanted[:3]
        length, error, found, off = of_found[:4]
        centred = length - found.square() / count, error - off.square() / count
        return _one_minus(squares - sums.square() / count, *centred)


class Ranked(Pearson):
    """1 - correlation of attention scores, plus gamma times the mean loss of their order.

    Liu et al., arXiv 2106.14156, equation 12: for two keys i and j of one query, with A the attention in
    floating point and A^ that of the quantized scores, max(0, theta - (A^_i - A^_j) sign(A_i - A_j)).
    Pairs are those of keys that lie `shifts` apart.

    Args:
        attention: from scores to what follows them up to the softmax's output; last axis: keys.
        shifts: distances between the keys of a pair, each from 1 to keys - 1.
    """

    divisible = False

    def __init__(
        self, attention: Callable[[Tensor], Tensor], gamma: float, theta: float, shifts: Sequence[int]
    ) -> None:
        self._attention, self._gamma, self._theta, self._shifts = attention, gamma, theta, shifts

    def of_found(self, found: Tensor, wanted: Tensor, weight: Tensor | None, axis: int | None) -> Tensor:
        order = self.order(self._attention(found), self._attention(wanted), axis)
        return torch.cat([super().of_found(found, wanted, weight, axis), order[None]])

    def order(self, found: Tensor, wanted: Tensor, axis: int | None) -> Tensor:
        """Sum over pairs of keys of the loss of their order, divided by the number of shifts; [groups]."""
        sums = torch.zeros(_groups(found, axis), dtype=torch.float64)
        for shift in self._shifts:
            sign = (wanted - wanted.roll(shift, -1)).sign_()
            kept = (found - found.roll(shift, -1)).mul_(sign)
            sums += total((self._theta - kept).clamp_(min=0), axis)
        return sums / max(len(self._shifts), 1)

    def loss(self, of_wanted: Tensor, of_found: Tensor) -> Tensor:
        return super().loss(of_wanted, of_found) + self._gamma * of_found[4] / of_wanted[2]


SCORES: dict[str, type[Score]] = {"mse": Squared, "l2": Norms, "cosine": Cosine, "pearson": Pearson}


def total(value: Tensor, axis: int | None) -> Tensor:
    """Sum over all axes but `axis`, float64 on the CPU: [groups], of one element without an axis."""
    if axis is None:
        return value.sum().reshape(1).double().cpu()
    others = [i for i in range(value.ndim) if i != axis % value.ndim]
    return (value.sum(others) if others else value).double().cpu()


def _groups(value: Tensor, axis: int | None) -> int:
    return 1 if axis is None else value.shape[axis]


def _one_minus(wanted: Tensor, found: Tensor, error: Tensor) -> Tensor:
    """1 - cosine from squared lengths of y, y^ and e, with what decides ties; 1 where one has no length."""
    one, other = wanted.clamp(min=0).sqrt(), found.clamp(min=0).sqrt()
    both = 2 * one * other
    cosine = torch.where(both > 0, (error - (other - one).square()) / both.clamp(min=TINY), 1.0)
    return cosine + TIES * error / wanted.clamp(min=TINY)
