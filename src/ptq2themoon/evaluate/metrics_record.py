"""metrics.json. Without torch: the summary reads it."""

from __future__ import annotations

from typing import ClassVar

from ptq2themoon.vocabulary.recipe_language import Protocol
from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Positive


class Metrics(Record):
    """What a model reaches on a set of images; null where it has no such figure, as `metrics` defines them.

    Those that compare with floating point are null for floating point itself.
    """

    stage: ClassVar[str] = "evaluate"

    protocol: Protocol | None = None
    """What is quantized at all; rows of different protocols are not to be compared."""
    images: Positive
    top1: float | None
    top5: float | None
    loss: float | None
    """Mean cross-entropy."""
    agreement: float | None
    logits_nsr: float | None
    logits_sqnr_db: float | None
    """Null where nothing differs."""
    output_cosine: float | None
    attention_cosine: float | None
    attention_kl: float | None
