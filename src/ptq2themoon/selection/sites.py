"""Which operators gain from per-channel scales: each alone, quantized per tensor and per channel.

A site is a role in a block, as a recipe selects it. For each site where two quantizers differ in
granularity: the error that it alone brings to the model's output per tensor and per channel, and the
ranges of its input's channels in floating point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.evaluate.operator_errors import Meters, logits_errors
from ptq2themoon.graph.editing.operator_types import channel_axis
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.selection.subject import Subject

LEAST = 1e-12  # an nsr that counts as none


class Site(NamedTuple):
    """What one condition of a recipe selects; `block` is None outside the blocks."""

    role: str
    block: int | None


def site_of(item: QuantizedOperator) -> Site | None:
    """None for an operator that no role names."""
    role = item.operator.role
    return Site(role, item.operator.block) if role else None


def differing(
    per_tensor: Sequence[QuantizedOperator], per_channel: Sequence[QuantizedOperator]
) -> list[Site]:
    """The sites where the two quantize otherwise, in graph order.

    Args:
        per_tensor, per_channel: of one graph.
    """
    before = {item.operator.name: item for item in per_tensor}
    found: dict[Site, None] = {}
    for item in per_channel:
        site, other = site_of(item), before.get(item.operator.name)
        if site is not None and other is not None and item.tensors != other.tensors:  # scales do not count
            found[site] = None
    return list(found)


def mixed(
    per_tensor: Sequence[QuantizedOperator],
    per_channel: Sequence[QuantizedOperator],
    chosen: Iterable[Site],
) -> list[QuantizedOperator]:
    """The first, with the operators of the chosen sites from the second."""
    sites, other = set(chosen), {item.operator.name: item for item in per_channel}
    return [other[item.operator.name] if site_of(item) in sites else item for item in per_tensor]


def rank(
    subject: Subject,
    per_tensor: Sequence[QuantizedOperator],
    per_channel: Sequence[QuantizedOperator],
    batches: Sequence[Tensor],
    references: Sequence[Tensor],
) -> pd.DataFrame:
    """One row per site, from the largest gain to the smallest.

    Columns: role, block; nsr_per_tensor, nsr_per_channel: of the output with only the operators there
    quantized, geometric means over images, summed over operators (lower is better; a few images on
    which attention tips over would rule an arithmetic mean); gain: their difference; range_largest,
    range_median: of the channels of the operators' first inputs, in floating point; range_rank: site
    in the order by the largest range.

    Args:
        batches: images [B, C, H, W], normalised.
        references: outputs [B, ...] in floating point, of each batch.
    """
    sites = differing(per_tensor, per_channel)
    rows = pd.DataFrame(sites, columns=["role", "block"]).astype({"block": "Int64"})
    for name, quantized in (("per_tensor", per_tensor), ("per_channel", per_channel)):
        chosen = [item for item in quantized if site_of(item) in set(sites)]
        meters = logits_errors(subject.model(chosen), subject.model([]), batches, references)
        rows[f"nsr_{name}"] = [_nsr(meters, chosen, site) for site in sites]
    rows["gain"] = rows["nsr_per_tensor"] - rows["nsr_per_channel"]
    ranges = channel_ranges(subject, per_tensor, set(sites), batches)
    rows["range_largest"] = [float(ranges[site].max()) for site in sites]
    rows["range_median"] = [float(ranges[site].median()) for site in sites]
    rows["range_rank"] = rows["range_largest"].rank(ascending=False, method="first").astype(int)
    return rows.sort_values("gain", ascending=False, kind="stable").reset_index(drop=True)


def _nsr(meters: Meters, items: Iterable[QuantizedOperator], site: Site) -> float:
    own = [meters[item.operator.name].images("nsr") for item in items if site_of(item) == site]
    return sum(float(nsr.clamp(min=LEAST).log().mean().exp()) for nsr in own)


def channel_ranges(
    subject: Subject,
    quantized: Sequence[QuantizedOperator],
    sites: set[Site],
    batches: Iterable[Tensor],
) -> dict[Site, Tensor]:
    """Maximum less minimum of every channel [channels] of the first inputs at each site, not quantized.

    Operators of one site, such as the LayerNorms between stages, may have channels of their own: all count.
    """
    model = subject.model(list(quantized))
    operators = {item.operator.name: item for item in quantized if site_of(item) in sites}
    bounds: dict[str, Tensor] = {}

    def widen(name: str, inputs: list[Tensor], _outputs: list[Tensor]) -> None:
        axis = channel_axis(operators[name].operator.type)
        channels = inputs[0].movedim(axis, -1).flatten(0, -2)
        found = torch.stack([channels.amax(0), -channels.amin(0)]).cpu()
        bounds[name] = torch.maximum(bounds[name], found) if name in bounds else found

    with model.only(()):
        for images in batches:
            model(images, dict.fromkeys(operators, widen))
    return {
        site: torch.cat([bounds[name].sum(0) for name, item in operators.items() if site_of(item) == site])
        for site in sites
    }
