"""Bits of weights and activations, as parameters and paths write them: `w8a8`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ptq2themoon.vocabulary.errors import UserError

BITS = re.compile(r"w([2-8])a([2-8])")


def parse_bits(bits: str) -> tuple[int, int]:
    """`w4a8` -> (4, 8): bits of the weights, bits of the activations."""
    match = BITS.fullmatch(bits)
    if not match:
        close = [min(max(int(number), 2), 8) for number in re.findall(r"\d+", bits)]
        weights, activations = close if len(close) == 2 else (8, 8)
        raise UserError(f"bits {bits!r}: must lie in w2a2 to w8a8; nearest valid: 'w{weights}a{activations}'")
    return int(match[1]), int(match[2])


def _bits(bits: str) -> str:
    try:
        parse_bits(bits)
    except UserError as error:
        raise ValueError(str(error)) from error
    return bits


def _both(bits: Any) -> Any:
    """Refuse a number alone, which does not tell weights from activations."""
    if isinstance(bits, int) and not isinstance(bits, bool):
        near = min(max(bits, 2), 8)
        raise ValueError(
            f"{bits}: must be bits of weights and of activations; nearest valid: {f'w{near}a{near}'!r}"
        )
    return bits


_pattern = Field(json_schema_extra={"pattern": f"^{BITS.pattern}$"})
Bits = Annotated[str, BeforeValidator(_both), AfterValidator(_bits), _pattern]
