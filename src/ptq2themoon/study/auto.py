"""A small set of places to quantize per channel, and the recipe that says so.

Of the places with a gain, best first, the shortest beginning that removes the share asked for of the
error that all of them remove together, found by bisection; then each of it is left out, the one of the
smallest gain first, where the rest still does. The error is that of the whole quantized model on
images of the calibration set: no image that the recipe will be tested on decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import yaml
from torch import Tensor

from ptq2themoon.evaluate.error_meter import ErrorMeter
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.study.channel_ranking import Place
from ptq2themoon.vocabulary.recipes import Recipe

Measure = Callable[[Sequence[Place]], float]
SETTINGS = {"granularity": "per-channel", "observer": "minmax", "weight_axis": "input"}


def output_error(model: SimulatedModel, batches: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """1 - cosine similarity of the output with floating point's, mean over images; lower is better."""
    meter = ErrorMeter()
    for images, reference in zip(batches, references, strict=True):
        meter.add(model(images), reference, len(images))
    return 1 - meter.summary()["cosine"]


@dataclass
class Search:
    """The candidates tried, in order.

    Attributes:
        measure: error of the model with some places per channel and all else per tensor.
        places: all candidates, best first.
        share: of the removable error that must be removed.
        steps: one a candidate set: what was tried, how many places it has, its error and share.
        removed: the share of the places chosen.
    """

    measure: Measure
    places: Sequence[Place]
    share: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    removed: float = 0.0

    def run(self) -> list[Place]:
        """The places chosen; none where a scale a channel removes no error."""
        self._worst = self.measure([])
        self._best = self.measure(self.places)
        self._note("none", [], self._worst)
        self._note("all with a gain", self.places, self._best)
        if self._best >= self._worst:
            return []
        self.removed = 1.0
        return self._without_needless(self._shortest_beginning())

    def _shortest_beginning(self) -> list[Place]:
        low, high = 0, len(self.places)  # `low` places are too few, `high` are enough
        while high - low > 1:
            middle = (low + high) // 2
            enough = self._enough(f"first {middle}", self.places[:middle])
            low, high = (low, middle) if enough else (middle, high)
        return list(self.places[:high])

    def _without_needless(self, chosen: list[Place]) -> list[Place]:
        for place in reversed(chosen.copy()):
            rest = [other for other in chosen if other != place]
            if rest and self._enough(f"without {called(place)}", rest):
                chosen = rest
        return chosen

    def _enough(self, what: str, places: Sequence[Place]) -> bool:
        share = self._note(what, places, self.measure(places))
        if share >= self.share:
            self.removed = share  # of what is chosen now: later candidates are smaller
        return share >= self.share

    def _note(self, what: str, places: Sequence[Place], error: float) -> float:
        removable = self._worst - self._best
        share = (self._worst - error) / removable if removable > 0 else 0.0
        self.steps.append({"tried": what, "places": len(places), "error": error, "share": share})
        return share


def called(place: Place) -> str:
    """`fc2 · 5`, or the role alone outside the blocks."""
    return place.role if place.block is None else f"{place.role} · {place.block}"


def recipe_text(base: Recipe, chosen: Sequence[Place], ranking: pd.DataFrame, facts: Sequence[str]) -> str:
    """A recipe that extends none: all rules of the base, then a rule a role with its evidence.

    Args:
        facts: lines on how it was found, for its head.
    """
    lines = ["# yaml-language-server: $schema=../workflow/schemas/recipe.schema.json"]
    lines += [f"# {fact}" for fact in facts]
    description = f"{base.name.capitalize()}, but per channel where this model needs it"
    lines += [f"description: {description}", f"activations: {base.activations}", ""]
    lines += [_dump({"defaults": base.defaults.model_dump()}), "rules:"]
    for located in base.rules:
        lines.append(f"  - {_flow(located.rule.given)}")
    for role in dict.fromkeys(place.role for place in chosen):
        lines += _rule(role, [place.block for place in chosen if place.role == role], ranking)
    return "\n".join(lines) + "\n"


def _rule(role: str, blocks: list[int | None], ranking: pd.DataFrame) -> list[str]:
    inside = sorted(block for block in blocks if block is not None)
    own = ranking[ranking["role"] == role].set_index("block")
    lines = []
    for block in (*inside, *([pd.NA] if None in blocks else [])):
        row = own.loc[block] if block is not pd.NA else own[own.index.isna()].iloc[0]
        where = "" if block is pd.NA else f" of block {block}"
        lines.append(
            f"  # {role}{where}: rank {int(row['rank'])}; output NSR {row['nsr_per_tensor']:.2e} per tensor, "
            f"{row['nsr_per_channel']:.2e} per channel; largest channel range {row['range_largest']:.3g}"
        )
    select: dict[str, Any] = {"role": role, **({"block": inside} if inside else {})}
    return [*lines, f"  - {_flow({'select': select, **SETTINGS})}"]


def _dump(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False).rstrip("\n")


def _flow(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=True, width=1000).strip()
