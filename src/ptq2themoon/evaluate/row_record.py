"""A row of the leaderboard as a file: a recipe at some bits with each seed, image by image. Without torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.vocabulary.records import Record
from ptq2themoon.vocabulary.validation import Strict

Marks = Annotated[str, Field(pattern="^[01]+$")]
"""`1` for each image that hits, `0` for each other, in the order of the manifest."""


class Drawn(Strict):
    """Of one seed: figures and hits; null where the model has none."""

    seed: Annotated[int, Field(ge=0)]
    metrics: Metrics
    right: Marks | None
    """Images whose best class is their label."""
    agreeing: Marks | None
    """Images whose best class is floating point's."""


class Row(Record):
    """What a recipe reaches at some bits, and floating point on the same images."""

    stage: ClassVar[str] = "leaderboard_row"

    fp32_top1: float | None
    fp32_right: Marks | None
    draws: Annotated[list[Drawn], Field(min_length=1)]


def as_marks(hits: npt.NDArray[np.bool_]) -> str:
    """`[True, False]` -> `10`."""
    return "".join("1" if hit else "0" for hit in hits.tolist())


def as_hits(marks: str) -> npt.NDArray[np.bool_]:
    """`10` -> `[True, False]`."""
    return np.array([mark == "1" for mark in marks], dtype=np.bool_)
