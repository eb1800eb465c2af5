"""Kinds of quantizers, by the name that recipes and files give them; each kind is one module."""

from __future__ import annotations

from ptq2themoon.quantize.quantizers.base import Quantizer
from ptq2themoon.quantize.quantizers.log_sqrt2 import LogSqrt2
from ptq2themoon.quantize.quantizers.uniform import Uniform

KINDS: dict[str, type[Quantizer]] = {kind.kind: kind for kind in (Uniform, LogSqrt2)}

__all__ = ["KINDS", "LogSqrt2", "Quantizer", "Uniform"]
