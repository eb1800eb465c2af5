"""Whether an INT8 model does in the runtime what the simulation says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.data.tensor_rows import TensorRows
from ptq2themoon.deploy.compare import Difference
from ptq2themoon.deploy.deploy_report import Placement
from ptq2themoon.evaluate.accuracy import AccuracyCounter
from ptq2themoon.evaluate.error_meter import ErrorMeter
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.modes import Mode
from ptq2themoon.vocabulary.operators import Operator

AGREEMENT = 99.0  # percent: least top-1 agreement with the simulation of a faithful model
SLACK = 1.0  # points: by so much a fast model may agree less with it than it agrees with floating point
Run = Callable[[np.ndarray], np.ndarray]  # images [B, C, H, W] to output [B, ...], float32


class Comparison:
    """One INT8 model against simulation and floating point, over all images seen.

    Args:
        classifier: False for outputs that are no logits [B, classes].
        labelled: whether all images have a label.
    """

    def __init__(self, classifier: bool, labelled: bool) -> None:
        self._runtime, self._simulated = (AccuracyCounter(classifier, labelled) for _ in range(2))
        self._both = AccuracyCounter(classifier, labelled=False)
        self._errors = {name: ErrorMeter() for name in ("", "_simulation", "simulated_")}

    def add(self, runtime: Tensor, simulated: Tensor, floating: Tensor, labels: Tensor) -> None:
        """Outputs [B, ...] of the same images.

        Raises:
            UserError: outputs of the INT8 model that are not finite.
        """
        if not bool(torch.isfinite(runtime).all()):
            raise UserError("the INT8 model gives outputs that are not finite")
        self._runtime.add(runtime, floating, labels)
        self._simulated.add(simulated, floating, labels)
        self._both.add(runtime, simulated, labels)
        pairs = ((runtime, floating), (runtime, simulated), (simulated, floating))
        for meter, (output, reference) in zip(self._errors.values(), pairs, strict=True):
            meter.add(output, reference)

    def metrics(self) -> dict[str, Any]:
        """Accuracy and agreement in percent where there are any; SQNR in dB, None where outputs are equal."""
        simulated = self._simulated.figures()
        runtime, both, simulation = (_sqnr(meter) for meter in self._errors.values())
        return {
            **self._runtime.figures(),
            "agreement_simulation": self._both.figures()["agreement"],
            "simulated_top1": simulated["top1"],
            "simulated_agreement": simulated["agreement"],
            "logits_sqnr_db": runtime,
            "logits_sqnr_db_simulation": both,
            "simulated_logits_sqnr_db": simulation,
        }


def compare_runs(
    batches: Iterable[tuple[Mapping[Mode, Tensor], Tensor]],
    simulated: Tensor | TensorRows,
    reference: Tensor | TensorRows,
    classifier: bool = True,
    labelled: bool = True,
) -> dict[Mode, dict[str, Any]]:
    """Metrics of each mode's INT8 model, all run on the same images.

    Args:
        batches: of each batch the output of every mode's model [B, ...], and labels [B]; N images in all.
        simulated, reference: outputs [N, ...] of the simulation, and in floating point.
    """
    found: dict[Mode, Comparison] = {}
    start = 0
    for outputs, labels in batches:
        here = slice(start, start + len(labels))
        for mode, output in outputs.items():
            comparison = found.setdefault(mode, Comparison(classifier, labelled))
            comparison.add(output, simulated[here], reference[here], labels)
        start = here.stop
    return {mode: comparison.metrics() for mode, comparison in found.items()}


def run_in_turn(
    runs: Mapping[Mode, Run], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[dict[Mode, Tensor], Tensor]]:
    """Output of every mode's model, and labels, of each batch.

    Args:
        batches: images [B, C, H, W], normalised, and labels [B].
    """
    for images, labels in progress(batches, desc="INT8 models in the runtime"):
        yield {mode: torch.from_numpy(run(images.numpy())) for mode, run in runs.items()}, labels


def _sqnr(meter: ErrorMeter) -> float | None:
    found = meter.summary()
    return found["sqnr_db"] if found["nsr"] > 0 else None


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
    differences: Sequence[Difference], operators: Iterable[Operator], placements: dict[str, Placement]
) -> pd.DataFrame:
    """Rows of runtime_operators.csv: one row per operator, in graph order."""
    known = {operator.name: operator for operator in operators}
    return pd.DataFrame(
        [
            {
                "mode": d.mode,
                "operator": d.operator,
                "type": known[d.operator].type,
                "role": known[d.operator].role,
                "block": known[d.operator].block,
                "runs": placements[d.operator].runs,
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
