"""Kinds of quantizers: each module of this package is one, named as in recipes; nothing else lists them."""

from __future__ import annotations

import importlib

from ptq2themoon.quantize.quantizers.base import Quantizer
from ptq2themoon.quantize.quantizers.log_sqrt2 import LogSqrt2
from ptq2themoon.quantize.quantizers.uniform import Uniform
from ptq2themoon.vocabulary.recipe_language import KIND_NAMES

KINDS: dict[str, type[Quantizer]] = {
    name: importlib.import_module(f"{__name__}.{name}").QUANTIZER for name in KIND_NAMES
}

__all__ = ["KINDS", "LogSqrt2", "Quantizer", "Uniform"]
