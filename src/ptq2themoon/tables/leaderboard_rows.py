"""The leaderboard: a row for each model, recipe, protocol and bits, differences judged on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ptq2themoon.evaluate.paired import Difference, judged
from ptq2themoon.evaluate.row_record import Drawn, Row, as_hits
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32

KEYS = ["model", "protocol", "recipe", "bits", "calibration_images"]
# Figures of the runs: each is a mean over seeds, with its standard deviation beside it.
FIGURES = ["top1", "agreement", "logits_sqnr_db", "attention_cosine"]
KERNELS = [
    "methods", "weight_bits", "activation_bits", "runs_on", "integer_share", "float_products", "floating",
    "why",
]  # fmt: skip
COMPARED = [
    "fp32_top1", "fp32_change", "fp32_p", "fp32_verdict", "base", "judged_by", "base_change", "base_p",
    "base_verdict", "best", "best_change", "best_p", "best_verdict",
]  # fmt: skip
COLUMNS = [
    *KEYS, "seeds", "images", *(f"{name}{end}" for name in FIGURES for end in ("", "_std")), *COMPARED,
    *KERNELS,
]  # fmt: skip
COSTS = ["model", "recipe", "bits", "seed", "seconds", "memory_mb"]
# What images are counted by for a difference from the base: the first that a model has.
MEASURES = {"top1": "right", "agreement": "agreeing"}

Hits = npt.NDArray[np.bool_]  # [draws, images]


class Entry(NamedTuple):
    """A row's file with what its path says."""

    model: str
    recipe: str
    bits: str
    calibration_images: int
    row: Row


def leaderboard(entries: Sequence[Entry], kernels: pd.DataFrame, bases: Sequence[str]) -> pd.DataFrame:
    """One row for each entry with `COLUMNS`, in their order, after each model's floating point.

    Args:
        kernels: model, recipe, bits and `KERNELS`.
        bases: recipes that rows of their protocol and bits are judged against; of two the first.

    Raises:
        UserError: an entry given twice, or rows of one model that were measured on different images.
    """
    rows: list[dict[str, Any]] = []
    for model in dict.fromkeys(entry.model for entry in entries):
        own = [entry for entry in entries if entry.model == model]
        _check(own)
        rows.append(_floating(own[0]))
        for entry in own:
            beside = [other for other in own if _comparable(entry, other)]
            row = {**_figures(entry), **_against_fp32(entry.row)}
            row |= _against("base", entry, _base_of(beside, bases))
            row |= _against("best", entry, _best_of(beside))
            rows.append(row)
    table = pd.DataFrame(rows).merge(kernels, how="left", on=["model", "recipe", "bits"], validate="1:1")
    whole = dict.fromkeys(("calibration_images", "seeds", "images"), "Int64")
    return table.reindex(columns=COLUMNS).astype(whole)


def protocol_of(row: Row) -> str:
    """What the row's recipe quantizes at all."""
    return str(row.draws[0].metrics.protocol)


def hits_of(row: Row, measure: str) -> Hits | None:
    """Right or agreeing images of each draw; None where the model has none."""
    marks = [getattr(draw, measure) for draw in row.draws]
    return None if None in marks else np.stack([as_hits(mark) for mark in marks])


def _check(own: Sequence[Entry]) -> None:
    first = own[0]
    for index, entry in enumerate(own):
        name = f"{entry.model}, {entry.recipe}, {entry.bits}"
        if any(entry[:4] == other[:4] for other in own[:index]):
            raise UserError(f"{name}: given twice")
        images = {draw.metrics.images for draw in entry.row.draws}
        if images != {first.row.draws[0].metrics.images} or entry.row.fp32_right != first.row.fp32_right:
            raise UserError(
                f"{name}: was measured on other images than {first.recipe}, {first.bits}; "
                "run `snakemake leaderboard` again"
            )


def _comparable(entry: Entry, other: Entry) -> bool:
    """Same protocol, bits and calibration images."""
    return other[2:4] == entry[2:4] and protocol_of(other.row) == protocol_of(entry.row)


def _base_of(beside: Sequence[Entry], bases: Sequence[str]) -> Entry | None:
    """The first base that is there."""
    return next((other for base in bases for other in beside if other.recipe == base), None)


def _best_of(beside: Sequence[Entry]) -> Entry:
    """That with the highest top-1, without labels agreement; of equal ones with the highest SQNR."""

    def merit(entry: Entry) -> tuple[float, float]:
        drawn = [draw.metrics for draw in entry.row.draws]
        right = [_number(each.agreement if each.top1 is None else each.top1) for each in drawn]
        return float(np.mean(right)), float(np.mean([_number(each.logits_sqnr_db) for each in drawn]))

    return max(beside, key=merit)


def _floating(entry: Entry) -> dict[str, Any]:
    images = entry.row.draws[0].metrics.images
    top1 = entry.row.fp32_top1
    return {
        "model": entry.model,
        "recipe": FP32,
        "bits": FP32,
        "images": images,
        "top1": top1,
        "fp32_top1": top1,
    }


def _figures(entry: Entry) -> dict[str, Any]:
    draws = entry.row.draws
    found: dict[str, Any] = {
        **{"model": entry.model, "protocol": protocol_of(entry.row), "recipe": entry.recipe},
        **{"bits": entry.bits, "calibration_images": entry.calibration_images},
        **{"seeds": len(draws), "images": draws[0].metrics.images},
    }
    for name in FIGURES:
        values = [_number(getattr(draw.metrics, name)) for draw in draws]
        deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        found[name], found[f"{name}_std"] = round(float(np.mean(values)), 8), round(float(deviation), 8)
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _against_fp32(row: Row) -> dict[str, Any]:
    hits = hits_of(row, "right")
    if hits is None or row.fp32_right is None:
        return {}
    floating = np.broadcast_to(as_hits(row.fp32_right), hits.shape)
    return {"fp32_top1": row.fp32_top1, **_said("fp32", judged(hits, floating))}


def _against(name: str, entry: Entry, other: Entry | None) -> dict[str, Any]:
    """The difference from another row, in columns that begin with `name`."""
    if other is None or other.recipe == entry.recipe:
        return {}
    if _seeds(entry.row.draws) != _seeds(other.row.draws):
        raise UserError(f"{entry.model}, {entry.recipe}, {entry.bits}: has other seeds than {other.recipe}")
    for measure, mark in MEASURES.items():
        hits, others = hits_of(entry.row, mark), hits_of(other.row, mark)
        if hits is not None and others is not None:
            return {name: other.recipe, "judged_by": measure, **_said(name, judged(hits, others))}
    return {}


def _seeds(draws: Sequence[Drawn]) -> list[int]:
    return [draw.seed for draw in draws]


def _said(prefix: str, difference: Difference) -> dict[str, Any]:
    return {
        f"{prefix}_change": difference.points,
        f"{prefix}_p": difference.p,
        f"{prefix}_verdict": difference.verdict,
    }


def mean_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds over seeds and largest memory of each model, recipe and bits."""
    groups = costs.groupby(["model", "recipe", "bits"], sort=False)
    return groups.agg(seconds=("seconds", "mean"), memory_mb=("memory_mb", "max")).reset_index()
