"""Error of every quantized operator, three ways.

accumulated: its output in the quantized graph against its output in floating point.
local: its output when it alone is quantized and its inputs are those of floating point.
logits: what quantizing it alone does to the model's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from ptq2themoon.evaluate.error_meter import ErrorMeter
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel

Meters = dict[str, ErrorMeter]


def output_errors(
    model: SimulatedModel, floating: SimulatedModel, batches: Iterable[Tensor]
) -> tuple[Meters, Meters]:
    """(accumulated, local) error of each operator's output over batches of images [B, C, H, W].

    Args:
        floating: the graph before any method changed its function, not quantized.
    """
    names = _in_both(model, floating)
    accumulated, local = _meters(names), _meters(names)
    for images in progress(batches, desc="errors of outputs"):
        for part in model.parts(images):
            reference = _Reference(model, len(part), accumulated, local)
            floating(part, dict.fromkeys(names, reference.keep))
            model(part, dict.fromkeys(names, reference.compare))
    return accumulated, local


def _in_both(model: SimulatedModel, floating: SimulatedModel) -> list[str]:
    """Quantized operators that have a counterpart in floating point, in graph order."""
    there = {operation.name for operation in floating.order}
    return [name for name in model.quantized_operators if name in there]


@dataclass
class _Reference:
    """Outputs of a batch in floating point, and the meters that it feeds."""

    model: SimulatedModel
    images: int
    accumulated: Meters
    local: Meters
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.outputs[name] = outputs[0]
        self.local[name].add(self.model.quantized_output(name, inputs), outputs[0], self.images)

    def compare(self, name: str, _: list[Tensor], outputs: list[Tensor]) -> None:
        self.accumulated[name].add(outputs[0], self.outputs.pop(name), self.images)


def logits_errors(
    model: SimulatedModel,
    floating: SimulatedModel,
    batches: Iterable[Tensor],
    references: Iterable[Tensor],
) -> Meters:
    """Error of the model's output with one operator quantized at a time, over images [B, C, H, W].

    Args:
        floating: the graph before any method changed its function, not quantized.
        references: outputs [B, ...] in floating point, of each batch.
    """
    meters = _meters(_in_both(model, floating))
    for number, (images, reference) in enumerate(zip(batches, references, strict=True), 1):
        runs = model.one_at_a_time(images, floating)
        for name, logits in progress(runs, desc=f"effect on the logits, batch {number}", total=len(meters)):
            meters[name].add(logits, reference.to(logits.device), len(images))
    return meters


def ranking(meters: Meters, top: int = 10) -> dict[str, Any]:
    """Operators from worst to best by SQNR, and whether another draw of images ranks them alike.

    The SQNR ranked by is the mean over images of each image's, in dB: a few images on which attention
    tips over rule the mean nsr, and with it the order. For the stability the images are split in two
    halves that each rank the operators: Spearman's rank correlation of the two (None where it is not
    defined: one image, or one operator), and how many of the `top` worst they share.
    """
    table = pd.DataFrame({name: _sqnr_of_images(meter) for name, meter in meters.items()})
    half = len(table) // 2
    first, second = table.iloc[:half].mean(), table.iloc[half : 2 * half].mean()
    correlation = float(first.rank().corr(second.rank()))
    shared = set(first.nsmallest(top).index) & set(second.nsmallest(top).index)
    worst_first = table.mean().sort_values(kind="stable")
    return {
        "images": len(table),
        "images_a_half": half,
        "operators": len(meters),
        "spearman": None if math.isnan(correlation) else correlation,
        "top": top,
        "top_shared": len(shared),
        "mean_sqnr_db": {name: round(value, 6) for name, value in worst_first.items()},
    }


def _sqnr_of_images(meter: ErrorMeter) -> list[float]:
    """SQNR in dB, one per image; no more than 120 where there is next to no error."""
    return (-10 * meter.images("nsr").clamp(min=1e-12).log10()).tolist()


def error_table(meters: Meters, mode: str, places: pd.DataFrame) -> pd.DataFrame:
    """One row per operator; `places` holds operator, type, role and block in graph order."""
    rows = pd.DataFrame([{"operator": name, **meter.summary()} for name, meter in meters.items()])
    table = places.merge(rows, on="operator", how="inner", validate="one_to_one")
    table.insert(places.shape[1], "mode", mode)
    return table


def _meters(names: Iterable[str]) -> Meters:
    return {name: ErrorMeter() for name in names}
