"""Observers, by the name that recipes give them; each is one module."""

from __future__ import annotations

from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.quantize.observers.kl import KL
from ptq2themoon.quantize.observers.minmax import MinMax
from ptq2themoon.quantize.observers.mse import MSE, SymmetricMSE
from ptq2themoon.quantize.observers.percentile import Percentile
from ptq2themoon.quantize.observers.percentiles import Percentiles
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "percentiles": Percentiles,
    "mse": MSE,
    "kl": KL,
}


def make_observer(spec: TensorSpec, axis: int | None) -> Observer:
    """What finds the quantizer of a tensor.

    Args:
        axis: of the channels or heads that have a scale each; None: per tensor.
    """
    plain = (spec.kind, spec.symmetry, spec.codes) == ("uniform", "symmetric", "signed")
    if spec.observer == "mse" and plain:
        return SymmetricMSE(spec, axis)  # PPQ's: its scales are those of recipes of long ago
    return OBSERVERS[spec.observer](spec, axis)


__all__ = ["OBSERVERS", "Observer", "make_observer"]
