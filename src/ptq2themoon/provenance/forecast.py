"""What a run will take, before anyone spends a night on it: jobs, core hours, memory and storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ptq2themoon.provenance.expected import Call
from ptq2themoon.vocabulary.cost_model import NONE, WHOLE, Cost, cost_of, images_of, size_of
from ptq2themoon.vocabulary.layout import recipe_file
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.deploy import RuntimePart
from ptq2themoon.vocabulary.stages.evaluate import EvaluatePart, ReferencePart

PART_OF = {WHOLE[kind.stage]: kind for kind in (ReferencePart, EvaluatePart, RuntimePart)}
FLOAT = 4  # bytes
EDITED = 6.7  # bytes for a parameter that a method may change: in qparams.safetensors
INT8 = 1.07  # bytes for a parameter of an INT8 model
ROW = 50  # bytes of an image in a table
SMALL = 200_000  # bytes of a job that writes tables or figures


class Line(NamedTuple):
    """All jobs of a stage.

    Attributes:
        hours: of one core, all together.
        longest: hours of the longest job on one core.
        mb: memory of the largest.
        stored: bytes of their results.
    """

    stage: str
    jobs: int
    hours: float
    longest: float
    mb: float
    stored: float


def forecast(params: Params, calls: Iterable[Call]) -> list[Line]:
    """A line per stage, in the order in which they first run, and one for all."""
    found: dict[str, list[tuple[Cost, float]]] = {}
    for kind, wildcards in _scattered(params, calls):
        job = cost_of(kind, params, wildcards), stored(kind, params, wildcards)
        found.setdefault(kind.stage, []).append(job)
    lines = [_line(stage, jobs) for stage, jobs in found.items()]
    return [*lines, _line("all", [job for jobs in found.values() for job in jobs])]


def _scattered(params: Params, calls: Iterable[Call]) -> Iterator[Call]:
    """Before each job that gathers, those of its shards."""
    shards = params.evaluation.shards
    for kind, wildcards in calls:
        if shards > 1 and kind.stage in PART_OF:
            for number in range(1, shards + 1):
                more = vars(wildcards) | {"key": wildcards.key, "scatteritem": f"{number}-of-{shards}"}
                yield PART_OF[kind.stage], SimpleNamespace(**more)
        yield kind, wildcards


def _line(stage: str, jobs: Sequence[tuple[Cost, float]]) -> Line:
    costs = [cost for cost, _ in jobs]
    hours = [cost.seconds / 3600 for cost in costs]
    return Line(
        stage,
        len(jobs),
        sum(hours),
        max(hours),
        max(cost.mb for cost in costs),
        sum(size for _, size in jobs),
    )


def stored(kind: Any, params: Params, wildcards: Any) -> float:
    """Bytes of a job's results; those of a shard are removed when they are gathered."""
    model = getattr(wildcards, "model", None)
    size = size_of(params, model) if model else NONE
    weights, images = size.parameters_m * 1e6, images_of(kind, params, wildcards)
    if kind.stage in WHOLE:
        return 0
    if kind.stage in WHOLE.values():
        images = params.evaluation.images or images
    of_stage = {
        "export": weights * FLOAT,
        "fuse": weights * FLOAT,
        "draw_calibration": images * size.pixels,
        "list_evaluation": images * ROW,
        "reference": images * (size.outputs + size.attention) * FLOAT,
        "evaluate": images * (size.outputs * FLOAT + ROW),
        "deploy": weights * INT8,
    }
    if kind.stage == "calibrate":
        return SMALL + (weights * EDITED if _may_edit(wildcards.recipe) else 0)
    return of_stage.get(kind.stage, SMALL)


@cache
def _may_edit(recipe: str) -> bool:
    return bool(load_recipe(Path(recipe_file(recipe))).methods)


def as_markdown(lines: Sequence[Line]) -> list[str]:
    """The lines of a table."""
    head = [
        "| Stage | Jobs | Core hours | Longest job (h) | Memory (GB) | Storage (GB) |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    rows = [
        f"| {line.stage} | {line.jobs:,} | {line.hours:,.2f} | {line.longest:.2f} | {line.mb / 1000:.1f} | "
        f"{line.stored / 1e9:,.2f} |"
        for line in lines
    ]
    return [*head, *rows]
