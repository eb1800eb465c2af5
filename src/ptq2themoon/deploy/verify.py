"""Whether an INT8 model does in the runtime what the simulation says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.deploy.compare import Difference
from ptq2themoon.deploy.modes import Mode
from ptq2themoon.deploy.report import Place
from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.errors import ErrorMeter, sqnr_db
from ptq2themoon.graph.operators import Operator
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel

AGREEMENT = 99.0  # percent: least top-1 agreement with the simulation of a faithful model
SLACK = 1.0  # points: by so much a fast model may agree less with it than it agrees with floating point
Run = Callable[[np.ndarray], np.ndarray]  # images [B, C, H, W] to output [B, ...], float32


@dataclass
class Outputs:
    """Outputs [N, ...] of all images, and their labels [N]."""

    runtime: Tensor
    simulated: Tensor
    floating: Tensor
    labels: Tensor


def collect(
    run: Run, floating: Run, simulated: SimulatedModel, batches: Iterable[tuple[Tensor, Tensor]]
) -> Outputs:
    """Run all three on the same images, normalised [B, C, H, W].

    Args:
        run, floating: the INT8 model and the one in floating point, both in the runtime.

    Raises:
        UserError: outputs that are not finite.
    """
    kept: list[tuple[Tensor, ...]] = []
    for images, labels in progress(batches, desc="runtime and simulation"):
        ours = torch.from_numpy(run(images.numpy()))
        if not bool(torch.isfinite(ours).all()):
            raise UserError("the INT8 model gives outputs that are not finite")
        reference = torch.from_numpy(floating(images.numpy()))
        kept.append((ours, simulated(images).cpu(), reference, labels))
    return Outputs(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def measure(found: Outputs, classifier: bool, labelled: bool) -> dict[str, Any]:
    """Accuracy in percent where there is any, and agreement and distance between the three.

    Args:
        classifier: False for outputs that are no logits [N, classes].
        labelled: whether all images have a label.
    """
    n = len(found.labels)
    ranked = {name: getattr(found, name) for name in ("runtime", "simulated", "floating")}
    first = {name: output.argmax(1) for name, output in ranked.items() if classifier}

    def agreement(a: str, b: str) -> float | None:
        return 100 * float((first[a] == first[b]).sum()) / n if classifier else None

    metrics: dict[str, Any] = {"images": n, "top1": None, "top5": None, "loss": None, "simulated_top1": None}
    if classifier and labelled:
        top5 = found.runtime.topk(min(5, found.runtime.shape[1]), dim=1).indices
        metrics |= {
            "top1": 100 * float((first["runtime"] == found.labels).sum()) / n,
            "top5": 100 * float((top5 == found.labels[:, None]).any(1).sum()) / n,
            "loss": float(F.cross_entropy(found.runtime.double(), found.labels)),
            "simulated_top1": 100 * float((first["simulated"] == found.labels).sum()) / n,
        }
    return {
        **metrics,
        "agreement": agreement("runtime", "floating"),
        "agreement_simulation": agreement("runtime", "simulated"),
        "simulated_agreement": agreement("simulated", "floating"),
        "logits_sqnr_db": _sqnr(found.runtime, found.floating),
        "logits_sqnr_db_simulation": _sqnr(found.runtime, found.simulated),
        "simulated_logits_sqnr_db": _sqnr(found.simulated, found.floating),
    }


def _sqnr(output: Tensor, reference: Tensor) -> float | None:
    """None: equal."""
    meter = ErrorMeter()
    meter.add(output, reference)
    nsr = meter.summary()["nsr"]
    return sqnr_db(nsr) if nsr > 0 else None


def least_agreement(metrics: dict[str, Any], mode: Mode) -> float | None:
    """The bound on top-1 agreement with the simulation, in percent; None where no output is a class.

    A fast model leaves out errors that the simulation has, so it need only agree with it as
    well as the simulation agrees with floating point.
    """
    if metrics["simulated_agreement"] is None:
        return None
    return AGREEMENT if mode == "faithful" else min(AGREEMENT, metrics["simulated_agreement"] - SLACK)


def departure(differences: Sequence[Difference]) -> str | None:
    """The first operator beyond its bounds."""
    return next((d.operator for d in differences if d.departs), None)


def verdict(metrics: dict[str, Any], differences: Sequence[Difference], mode: Mode) -> dict[str, Any]:
    """What runtime.json says of the check."""
    bound, agreement = least_agreement(metrics, mode), metrics["agreement_simulation"]
    values = sum(d.values for d in differences)
    from_tie = max((d.from_tie for d in differences), default=0.0)
    return {
        "least_agreement": bound,
        "agrees": None if bound is None else agreement >= bound,
        "operators": len(differences),
        "departing": sum(d.departs for d in differences),
        "first_departing": departure(differences),
        "largest_code_difference": max((d.largest for d in differences), default=0),
        "codes_that_differ": sum(d.differ for d in differences) / max(values, 1),
        "farthest_from_tie": from_tie if mode == "faithful" else None,
    }


def operator_table(
    differences: Sequence[Difference], operators: Iterable[Operator], places: dict[str, Place]
) -> pd.DataFrame:
    """runtime_operators.csv: one row an operator, in graph order."""
    known = {operator.name: operator for operator in operators}
    return pd.DataFrame(
        [
            {
                "operator": d.operator,
                "type": known[d.operator].type,
                "role": known[d.operator].role,
                "block": known[d.operator].block,
                "runs": places[d.operator].runs,
                "values": d.values,
                "differ": d.differ / d.values,
                "largest": d.largest,
                "from_tie": d.from_tie if d.mode == "faithful" else None,
                "rms": d.rms,
                "departs": d.departs,
            }
            for d in differences
        ]
    ).astype({"block": "Int64"})
