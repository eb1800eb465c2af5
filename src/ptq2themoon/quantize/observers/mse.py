"""The range of least squared quantization error, found on a histogram; per tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.quantize.observers.kl import PPQHistogram
from ptq2themoon.quantize.observers.minmax import MinMax
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

BINS = 4096
STEPS = 40  # candidates on each side, as shares of the range
ROUNDS = 3  # both ends by turns


class SymmetricMSE(PPQHistogram):
    """PPQ's observer, symmetric with signed codes."""


class MSE(MinMax):
    """Any kind of quantizer: both ends of the range are searched by turns, from the whole range inwards."""

    passes = 2

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        super().__init__(spec, axis)
        self._counts: Tensor | None = None

    @classmethod
    def of(cls, spec: TensorSpec, axis: int | None) -> Observer:
        """PPQ's observer where it can serve: its scales are those of recipes of long ago."""
        plain = (spec.kind, spec.symmetry, spec.codes) == ("uniform", "symmetric", "signed")
        return SymmetricMSE(spec, axis) if plain else cls(spec, axis)

    def observe(self, value: Tensor) -> None:
        """Widen the range in the first pass; count values in bins over it in the second."""
        if self._counts is None:
            super().observe(value)
            return
        low, high = (end.item() for end in self.range())
        self._counts += torch.histc(value.float(), BINS, low, high).double().cpu()

    def end_pass(self) -> None:
        """Set up empty bins over the range of the first pass."""
        self._counts = torch.zeros(BINS, dtype=torch.float64)

    def quantizer(self) -> Quantizer:
        """The quantizer of the shrunk range with least squared error on the bins."""
        assert self._counts is not None
        low, high = (end.double().cpu() for end in self.range())
        width = (high - low) / BINS
        centres = (low + (torch.arange(BINS) + 0.5) * width).float()
        there = self._counts > 0
        centres, counts = centres[there], self._counts[there]

        def error(ends: tuple[Tensor, Tensor]) -> float:
            off = (self._from_range(*ends)(centres) - centres).double()
            return float((counts * off.square()).sum())

        best, least = (low, high), error((low, high))
        shares = torch.linspace(1 / STEPS, 1, STEPS, dtype=torch.float64)
        for moved in [(True, True), *[(True, False), (False, True)] * ROUNDS]:
            for share in shares:
                ends = low * share if moved[0] else best[0], high * share if moved[1] else best[1]
                if (found := error(ends)) < least:
                    best, least = ends, found
        return self._from_range(*best)


OBSERVER = MSE
