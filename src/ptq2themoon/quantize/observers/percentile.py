"""The percentile observer: what lies beyond a percentile, on either side, is clipped.

PPQ asks `torch.kthvalue` of all values of a batch, twice. But one value in ten thousand lies beyond the
percentile: those are in few rows, if the values are laid out in rows, and a row's extreme says whether
it can hold one. One pass for the rows' extremes, then a search in the few rows that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

WIDEST = 256  # values in a row
NARROWEST = 8  # with less, nearly every row is left


class Percentile(Observer):
    """The mean over batches of both percentiles; scales of PPQ's `TorchPercentileObserver`, to the bit."""

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        super().__init__(spec, axis)
        self._share = round(spec.percentile / 100, 12)
        self._found: list[tuple[float, float]] = []  # of each batch

    def observe(self, value: Tensor) -> None:
        """Keep the low and the high percentile of one batch."""
        low, high = percentiles_of(value, self._share)
        self._found.append((low.item(), high.item()))

    def quantizer(self) -> Quantizer:
        """The quantizer whose codes cover the means of the batches' percentiles."""
        low, high = torch.tensor(self._found, dtype=torch.float32).mean(dim=0)
        return self._from_range(low, high)


def percentiles_of(value: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(low, high) order statistics of all values, such that `share` of them lie below the high one."""
    n = value.numel()
    below, beyond = int(n * (1 - share)), int(n * share)
    return -largest(-value, max(0, below) + 1), largest(value, n - min(beyond, n - 1))


def largest(value: Tensor, k: int) -> Tensor:
    """The k-th largest element of a tensor, counted from 1; 0-d.

    Equal to `torch.kthvalue` of the flattened tensor: of the rows' maxima the k-th largest is a bound
    that at least k elements reach, and whatever reaches it is in a row whose maximum does.
    """
    flat = value.flatten()
    width = min(WIDEST, flat.numel() // (8 * k))
    if width < NARROWEST:
        return _kth(flat, k)
    rows = flat[: flat.numel() // width * width].view(-1, width)
    maxima = rows.amax(1)
    reached = rows[maxima >= _kth(maxima, k)]
    return _kth(torch.cat([reached.flatten(), flat[rows.numel() :]]), k)


def _kth(flat: Tensor, k: int) -> Tensor:
    return torch.kthvalue(flat, flat.numel() - k + 1).values


OBSERVER = Percentile
