"""bits.json, which tells the other stages of the study at which bits they work."""

from __future__ import annotations

from typing import ClassVar

from ptq2themoon.vocabulary.bits import Bits
from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Strict


class Tried(Strict):
    """What a recipe lost at some bits, in points of a measure."""

    bits: Bits
    measure: str
    lost: float


class NarrowBits(Record):
    """The first bits at which a recipe loses more than `loss` points; else the last tried."""

    stage: ClassVar[str] = "study_bits"

    narrow: Bits
    loses_more: bool
    loss: float
    tried: list[Tried]
