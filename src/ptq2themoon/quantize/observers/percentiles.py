"""The best of three percentiles by squared error, as RepQ-ViT calibrates (arXiv 2212.08254, section 4.1).

The percentiles are 99.9, 99.99 and 99.999. RepQ-ViT's code takes one batch of all images; here the
percentiles are means over batches, as those of the percentile observer, and a second pass sums the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.observers.base import Observer, rows
from ptq2themoon.quantize.observers.percentile import percentiles_of
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

SHARES = (0.999, 0.9999, 0.99999)


class Percentiles(Observer):
    """Each channel, or the tensor, takes the percentile that leaves it the least squared error."""

    passes = 2

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        super().__init__(spec, axis)
        self._sums: Tensor | float = 0.0  # [shares, 2, channels]
        self._batches = 0
        self._candidates: list[Quantizer] = []
        self._errors: Tensor | float = 0.0  # [shares, channels]

    def observe(self, value: Tensor) -> None:
        """Sum the batch's percentiles in the first pass, the candidates' squared errors in the second."""
        if not self._candidates:
            self._sums = self._sums + self._of_batch(value).double()
            self._batches += 1
            return
        found = [(candidate(value) - value).square() for candidate in self._candidates]
        self._errors = self._errors + torch.stack([rows(e, self.axis).double().sum(1) for e in found]).cpu()

    def _of_batch(self, value: Tensor) -> Tensor:
        if self.axis is None:
            pairs = [torch.stack(percentiles_of(value, share)) for share in SHARES]
            return torch.stack(pairs)[..., None].cpu()
        ordered = rows(value, self.axis).sort(1).values
        last = ordered.shape[1] - 1
        at = [(round(last * (1 - share)), round(last * share)) for share in SHARES]
        return torch.stack([torch.stack([ordered[:, low], ordered[:, high]]) for low, high in at]).cpu()

    def end_pass(self) -> None:
        """Make one candidate quantizer for each share from the mean percentiles."""
        for low, high in (torch.as_tensor(self._sums) / self._batches).float():
            if self.axis is None:
                low, high = low[0], high[0]
            self._candidates.append(self._from_range(low, high))

    def quantizer(self) -> Quantizer:
        """The candidate with least squared error, chosen per tensor or for each channel."""
        best = torch.as_tensor(self._errors).argmin(0)
        if self.axis is None:
            return self._candidates[int(best[0])]
        first = self._candidates[0]
        arrays = {
            name: torch.stack([getattr(c, name) for c in self._candidates]).gather(0, best[None])[0]
            for name in first.array_names
        }
        return type(first).from_settings(first.bits, self.axis, first.settings(), arrays)


OBSERVER = Percentiles
