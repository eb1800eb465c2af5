"""Observers: each module of this package is one, named as in recipes; nothing else lists them."""

from __future__ import annotations

import importlib

from ptq2themoon.quantize.observers.base import Observer
from ptq2themoon.vocabulary.recipe_language import OBSERVER_NAMES
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

OBSERVERS: dict[str, type[Observer]] = {
    name: importlib.import_module(f"{__name__}.{name}").OBSERVER for name in OBSERVER_NAMES
}


def make_observer(spec: TensorSpec, axis: int | None) -> Observer:
    """What finds the quantizer of a tensor.

    Args:
        axis: of the channels or heads that have a scale each; None: per tensor.
    """
    return OBSERVERS[spec.observer].of(spec, axis)


__all__ = ["OBSERVERS", "Observer", "make_observer"]
