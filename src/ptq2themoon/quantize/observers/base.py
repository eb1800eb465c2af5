"""What every observer does: see the values of a tensor, batch by batch, and give its quantizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ptq2themoon.quantize.quantizers import KINDS, Quantizer
from ptq2themoon.vocabulary.tensor_spec import TensorSpec


class Observer(ABC):
    """Finds the quantizer of one tensor; a module of this package defines a subclass and names it `OBSERVER`.

    All batches are shown `passes` times; `end_pass` stands between two passes. Memory does not grow with
    the number of batches by more than a few numbers per batch.

    Args:
        spec: how the tensor is quantized.
        axis: of the channels or heads that have a scale each; None: per tensor.
    """

    passes: ClassVar[int] = 1

    def __init__(self, spec: TensorSpec, axis: int | None) -> None:
        self.spec, self.axis = spec, axis

    @classmethod
    def of(cls, spec: TensorSpec, axis: int | None) -> Observer:
        """The observer for a tensor."""
        return cls(spec, axis)

    @abstractmethod
    def observe(self, value: Tensor) -> None:
        """See one batch of finite values; `value` stays as it is."""

    def end_pass(self) -> None:
        """Get ready for the next pass, where there is one.

        Raises:
            ValueError: values that the kind of quantizer has no codes for, with the reason.
        """
        raise RuntimeError(f"observer {self.spec.observer!r} has one pass")

    @abstractmethod
    def quantizer(self) -> Quantizer:
        """What was found, after the last pass.

        Raises:
            ValueError: values that the kind of quantizer has no codes for, with the reason.
        """

    def _from_range(self, low: Tensor, high: Tensor) -> Quantizer:
        return KINDS[self.spec.kind].from_range(low, high, self.spec, self.axis)


def rows(value: Tensor, axis: int | None) -> Tensor:
    """[channels, values] of a tensor with a scale for each index along `axis`; [1, values] per tensor."""
    return value.reshape(1, -1) if axis is None else value.movedim(axis, 0).flatten(1)
