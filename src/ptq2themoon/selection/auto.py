"""A small set of sites to quantize per channel, and the recipe that says so.

Of the sites with a gain, best first, the shortest beginning that removes the share asked for of the
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
from ptq2themoon.selection.sites import Site
from ptq2themoon.vocabulary.recipes import Recipe

Measure = Callable[[Sequence[Site]], float]
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
        measure: error of the model with some sites per channel and all else per tensor.
        sites: all candidates, best first.
        share: of the removable error that must be removed.
        steps: one per candidate set: what was tried, how many sites it has, its error and share.
        removed: the share of the sites chosen.
    """

    measure: Measure
    sites: Sequence[Site]
    share: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    removed: float = 0.0

    def run(self) -> list[Site]:
        """The sites chosen; none where per-channel scales remove no error."""
        self._worst = self.measure([])
        self._best = self.measure(self.sites)
        self._note("none", [], self._worst)
        self._note("all with a gain", self.sites, self._best)
        if self._best >= self._worst:
            return []
        self.removed = 1.0
        return self._without_needless(self._shortest_beginning())

    def _shortest_beginning(self) -> list[Site]:
        low, high = 0, len(self.sites)  # `low` sites are too few, `high` are enough
        while high - low > 1:
            middle = (low + high) // 2
            enough = self._enough(f"first {middle}", self.sites[:middle])
            low, high = (low, middle) if enough else (middle, high)
        return list(self.sites[:high])

    def _without_needless(self, chosen: list[Site]) -> list[Site]:
        for site in reversed(chosen.copy()):
            rest = [other for other in chosen if other != site]
            if rest and self._enough(f"without {called(site)}", rest):
                chosen = rest
        return chosen

    def _enough(self, what: str, sites: Sequence[Site]) -> bool:
        share = self._note(what, sites, self.measure(sites))
        if share >= self.share:
            self.removed = share  # of what is chosen now: later candidates are smaller
        return share >= self.share

    def _note(self, what: str, sites: Sequence[Site], error: float) -> float:
        removable = self._worst - self._best
        share = (self._worst - error) / removable if removable > 0 else 0.0
        self.steps.append({"tried": what, "sites": len(sites), "error": error, "share": share})
        return share


def called(site: Site) -> str:
    """`fc2 · 5`, or the role alone outside the blocks."""
    return site.role if site.block is None else f"{site.role} · {site.block}"


def recipe_text(base: Recipe, chosen: Sequence[Site], ranking: pd.DataFrame, facts: Sequence[str]) -> str:
    """A recipe that extends none: all rules of the base, then one rule per role with its evidence.

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
    for role in dict.fromkeys(site.role for site in chosen):
        lines += _rule(role, [site.block for site in chosen if site.role == role], ranking)
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
