"""Bits of weights and activations, as parameters and paths write them: `w8a8`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

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


Bits = Annotated[str, AfterValidator(_bits), Field(json_schema_extra={"pattern": f"^{BITS.pattern}$"})]
