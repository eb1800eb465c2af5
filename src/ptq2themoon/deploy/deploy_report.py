"""deploy.json: what runs in integers and what does not, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import onnx

from ptq2themoon.vocabulary.modes import Mode, Profile
from ptq2themoon.vocabulary.operators import Operator


class Placement(NamedTuple):
    """Where an operator is computed, and why there."""

    runs: Literal["integer", "float"]
    why: str


class ScaleMigration(NamedTuple):
    """How activations with per-channel scales became integers with one scale.

    Attributes:
        operator: the layer that reads them.
        into: the LayerNorm whose parameters took the scales, at no cost; None: one multiplication more.
        channels: how many.
    """

    operator: str
    into: str | None
    channels: int

    @property
    def kind(self) -> str:
        """What took the scales: a LayerNorm's parameters, or a multiplication."""
        return "layernorm" if self.into else "multiplication"


@dataclass
class Deployed:
    """An INT8 model and what was done to make it.

    Attributes:
        placements: of the operators that the recipe quantizes.
        kept: products in floating point by the kind of quantizer that no integers express.
        work: multiply-accumulates of every product and convolution, for one image.
    """

    model: onnx.ModelProto
    mode: Mode
    profile: Profile
    placements: dict[str, Placement]
    migrations: list[ScaleMigration] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)

    def report(self, operators: Iterable[Operator]) -> dict[str, Any]:
        """What deploy.json holds of the model, apart from sums of files.

        Args:
            operators: those that the recipe quantizes, in graph order.
        """
        (opset,) = (o.version for o in self.model.opset_import if o.domain == "")
        return {
            "mode": self.mode,
            "profile": self.profile,
            "opset": opset,
            "products": self.products(),
            "operators": [{**o._asdict(), **self.placements[o.name]._asdict()} for o in operators],
            "folds": [{"kind": moved.kind, **moved._asdict()} for moved in self.migrations],
        }

    def products(self) -> dict[str, Any]:
        """How many run in integers, their share of the multiply-accumulates, and what each kind costs."""
        integer = [
            name for name in self.work if name in self.placements and self.placements[name].runs == "integer"
        ]
        total = sum(self.work.values())

        def share(names: list[str]) -> float:
            return round(sum(self.work[name] for name in names) / total, 4) if total else 0.0

        by_kind: dict[str, list[str]] = {}
        for name in self.work:
            if name in self.kept:
                by_kind.setdefault(self.kept[name], []).append(name)
        return {
            "integer": len(integer),
            "float": len(self.work) - len(integer),
            "integer_share": share(integer),
            "float_by_kind": {k: {"products": len(n), "share": share(n)} for k, n in by_kind.items()},
        }
