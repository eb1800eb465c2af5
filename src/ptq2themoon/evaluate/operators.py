"""Error of every quantized operator, three ways.

accumulated: its output in the quantized graph against its output in floating point.
local: its output when it alone is quantized and its inputs are those of floating point.
logits: what quantizing it alone does to the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.evaluate.errors import ErrorMeter
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel

Meters = dict[str, ErrorMeter]


def output_errors(model: SimulatedModel, batches: Iterable[Tensor]) -> tuple[Meters, Meters]:
    """(accumulated, local) error of each operator's output over batches of images [B, C, H, W]."""
    names = model.quantized_operators
    accumulated, local = _meters(names), _meters(names)
    for images in progress(batches, desc="errors of outputs"):
        reference: dict[str, Tensor] = {}

        def locally(
            name: str, inputs: list[Tensor], outputs: list[Tensor], kept: dict[str, Tensor] = reference
        ) -> None:
            kept[name] = outputs[0]
            local[name].add(model.quantized_output(name, inputs), outputs[0])

        def accumulating(
            name: str, _: list[Tensor], outputs: list[Tensor], kept: dict[str, Tensor] = reference
        ) -> None:
            accumulated[name].add(outputs[0], kept.pop(name))

        with model.only(()):
            model(images, dict.fromkeys(names, locally))
        model(images, dict.fromkeys(names, accumulating))
    return accumulated, local


def logits_errors(model: SimulatedModel, images: Tensor) -> Meters:
    """Error of the logits with one operator quantized at a time; as many runs as operators."""
    meters = _meters(model.quantized_operators)
    with model.only(()):
        reference = model(images)
    for name, meter in progress(meters.items(), desc="effect on the logits", total=len(meters)):
        with model.only({name}):
            meter.add(model(images), reference)
    return meters


def ranking_stability(meters: Meters, top: int = 10) -> dict[str, float | int | None]:
    """Does another draw of images rank the operators alike?

    The images are split in two halves, each ranks the operators by nsr: Spearman's rank
    correlation of the two (None where it is not defined: one image, or one operator), and how many
    of the `top` worst they share.
    """
    table = pd.DataFrame({name: meter.images("nsr").tolist() for name, meter in meters.items()})
    half = len(table) // 2
    first, second = table.iloc[:half].mean(), table.iloc[half : 2 * half].mean()
    correlation = float(first.rank().corr(second.rank()))
    shared = set(first.nlargest(top).index) & set(second.nlargest(top).index)
    return {
        "images": len(table),
        "images_a_half": half,
        "operators": len(meters),
        "spearman": None if math.isnan(correlation) else correlation,
        "top": top,
        "top_shared": len(shared),
    }


def error_table(meters: Meters, mode: str, places: pd.DataFrame) -> pd.DataFrame:
    """One row an operator; `places` holds operator, type, role and block in graph order."""
    rows = pd.DataFrame([{"operator": name, **meter.summary()} for name, meter in meters.items()])
    table = places.merge(rows, on="operator", how="inner", validate="one_to_one")
    table.insert(places.shape[1], "mode", mode)
    return table


def _meters(names: Iterable[str]) -> Meters:
    return {name: ErrorMeter() for name in names}


def first_images(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first `count` images of the batches, in one tensor."""
    taken: list[Tensor] = []
    for images in batches:
        taken.append(images)
        if sum(len(batch) for batch in taken) >= count:
            break
    return torch.cat(taken)[:count]
