"""Gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def slope(loss: Callable[[], Tensor], value: Tensor, index: int, step: float) -> float:
    """Of the loss along one element of `value`, by central differences."""
    flat = value.detach().view(-1)
    kept, found = flat[index].item(), []
    for sign in (1, -1):
        flat[index] = kept + sign * step
        found.append(loss().item())
    flat[index] = kept
    return (found[0] - found[1]) / (2 * step)
