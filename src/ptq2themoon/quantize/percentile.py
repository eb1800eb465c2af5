"""PPQ's percentile observer, by another way to the same order statistics.

PPQ asks `torch.kthvalue` of all values of a batch, twice. But one value in ten thousand lies beyond the
percentile: those are in few rows, if the values are laid out in rows, and a row's extreme says whether
it can hold one. One pass for the rows' extremes, then a search in the few rows that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.ppq_compat import core, observer

WIDEST = 256  # values in a row
NARROWEST = 8  # with less, nearly every row is left


class PercentileObserver(observer.TorchPercentileObserver):
    """The scales of `ppq.quantization.observer.TorchPercentileObserver`, to the bit; per tensor only."""

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        if self._quant_cfg.state != core.QuantizationStates.INITIAL:
            return
        n = value.numel()
        below, beyond = int(n * (1 - self._percentile)), int(n * self._percentile)
        low = -largest(-value, max(0, below) + 1)
        high = largest(value, n - min(beyond, n - 1))
        self._percentile_collector.append(torch.stack([high, low]).view(1, -1))


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
