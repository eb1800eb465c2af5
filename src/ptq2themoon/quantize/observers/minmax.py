"""The whole range: least and greatest value over all batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.tensor_spec import TensorSpec


class MinMax(Observer):
    """Scales of PPQ's `TorchMinMaxObserver`, to the bit."""

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        super().__init__(spec, axis)
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def observe(self, value: Tensor) -> None:
        """Widen the range by one batch."""
        others = tuple(i for i in range(value.ndim) if i != self.axis)
        if self.axis is None:
            low, high = torch.aminmax(value)
        else:  # without other axes each channel is one value
            low, high = (value.amin(others), value.amax(others)) if others else (value, value)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value seen, 0-d or [channels]."""
        if self._low is None or self._high is None:
            raise ValueError("no values were observed")
        return self._low, self._high

    def quantizer(self) -> Quantizer:
        """The quantizer whose codes cover the whole range."""
        return self._from_range(*self.range())


OBSERVER = MinMax
