"""What every kind of quantizer can do; only the kind itself knows its formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ptq2themoon.vocabulary.tensor_spec import TensorSpec

SMALLEST_SCALE = 1e-8  # as PPQ has it: a tensor of zeros has a scale too


class Quantizer(ABC):
    """Replaces each value of a tensor by the nearest of the values that its codes stand for.

    Attributes:
        kind: the name in recipes and files.
        array_names: of what `arrays` gives.
        bits: of a code.
        scale: float32, 0-d per tensor, [channels] along `axis`.
        axis: the axis whose indices have a scale each (channels, or heads); None per tensor.
    """

    kind: ClassVar[str]
    array_names: ClassVar[tuple[str, ...]]
    bits: int
    scale: Tensor
    axis: int | None

    @classmethod
    @abstractmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: TensorSpec, axis: int | None) -> Self:
        """The quantizer whose codes cover `low` to `high`, float32, 0-d or [channels].

        Raises:
            ValueError: values that this kind has no codes for, with the reason.
        """

    @classmethod
    @abstractmethod
    def from_settings(
        cls, bits: int, axis: int | None, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Self:
        """What `settings` and `arrays` describe.

        Raises:
            ValueError: an unknown or missing setting, or values that contradict each other.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the file says besides bits, axis and arrays; plain JSON values."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """Tensors that the file keeps, by name; each 0-d or [channels]."""

    @abstractmethod
    def __call__(self, value: Tensor) -> Tensor:
        """`value` quantized and dequantized, in new memory."""

    def in_place(self, value: Tensor) -> Tensor:
        """As `__call__`; may overwrite `value`."""
        return self(value)

    @abstractmethod
    def straight_through(self, value: Tensor) -> Tensor:
        """As `__call__` to the bit, with a gradient that takes rounding for the identity.

        The gradient reaches `value` and those of `arrays` that require one.
        """

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for two quantizers that give equal values; quantizing twice with one key changes nothing."""

    @property
    def kept_by_moving(self) -> bool:
        """Whether values that are moved within their tensor stay on the grid."""
        return self.axis is None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantizer) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def along(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """0-d or [channels], shaped to be broadcast along `axis` of a tensor of `rank` dimensions."""
    if not values.ndim:
        return values
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def round_straight_through(value: Tensor) -> Tensor:
    """Round half to even; its gradient is that of the identity.

    The sum is exact: a value and its rounding differ by at most a half, without a rounding error.
    """
    return value + (value.round() - value).detach()


def clip(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """As `torch.clamp`, with the whole gradient for a value that lies on a bound.

    Many do, for a bound is a code; `torch.clamp` gives them half of it or none, by version and arguments.
    """
    value = torch.where(value < low, low, value)
    return torch.where(value > high, high, value)


def checked_scale(scale: Tensor) -> Tensor:
    """float32 on the CPU; `ValueError` unless all are finite and above 0."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("scale must be finite and above 0")
    return scale.detach().cpu().to(torch.float32)
