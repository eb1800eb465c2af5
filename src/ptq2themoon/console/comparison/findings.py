"""What a comparison finds: figures with their difference, and other things that are not the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from ptq2themoon.console.comparison.noise import Judgement
from ptq2themoon.evaluate.paired import LEVEL


@dataclass(frozen=True)
class Figure:
    """One figure of both sides; `where` is the run, as in `demo/vanilla/w8a8-n256-s0`."""

    where: str
    name: str
    first: float
    second: float
    judgement: Judgement


@dataclass
class Comparison:
    """All that was found.

    Attributes:
        figures: of every file that both sides have.
        made: inputs, parameters and recipes that differ, a line each.
        scales: quantizers that differ by more than the last digits, a line each.
        alone: files that only one side has, a line each.
        notes: what could not be compared, and what differs without being a result.
    """

    figures: list[Figure] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def level(self) -> float:
        """The p-value below which one test counts, so that all together err by chance at `LEVEL`."""
        tests = sum(figure.judgement.p is not None for figure in self.figures)
        return LEVEL / max(tests, 1)

    @property
    def beyond(self) -> list[Figure]:
        """Figures that differ by more than noise."""
        return [figure for figure in self.figures if figure.judgement.beyond(self.level)]

    @property
    def differs(self) -> bool:
        """Whether anything differs that noise does not explain."""
        return bool(self.beyond or self.made or self.scales or self.alone)


def changes(first: object, second: object, key: str = "") -> list[str]:
    """Where two values read from JSON differ: `rules[2].granularity: "per-channel" → "per-tensor"`."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = dict.fromkeys([*first, *second])
        found = [
            changes(first.get(n, ABSENT), second.get(n, ABSENT), f"{key}.{n}" if key else n) for n in names
        ]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        found = [
            changes(a, b, f"{key}[{index}]") for index, (a, b) in enumerate(zip(first, second, strict=True))
        ]
    else:
        return [] if first == second else [f"{key}: {_shown(first)} → {_shown(second)}"]
    return [line for lines in found for line in lines]


ABSENT = object()


def _shown(value: object) -> str:
    text = "nothing" if value is ABSENT else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
