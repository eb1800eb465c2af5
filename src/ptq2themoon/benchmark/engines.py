"""The simulation's two engines, and calibration by PPQ's own pass and by ours: times and equality."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq2themoon.benchmark.timing import interleaved, quartiles, ratios
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.ppq_compat import ppq
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.simulation import SimulatedModel, load_model
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.quiet import quiet

COLUMNS = (
    *("model", "measure", "contestant", "images", "batch", "threads", "rounds"),
    *("seconds", "low", "high", "ratio", "ratio_low", "ratio_high", "equal"),
)
REFERENCE, PROGRAM = "PPQ's executor", "our program"
PPQ_PASS, OURS = "PPQ's calibration pass", "ours"
Plan = Callable[[], list[QuantizedOperator]]


def forward(
    fused: FusedModel,
    qparams: Sequence[Path],
    images: Tensor,
    rounds: int,
    others: dict[str, Callable[[], object]],
) -> list[dict[str, Any]]:
    """Rows of the engines on one batch, and of `others` that run the same batch.

    Args:
        images: [B, C, H, W], normalised.
    """
    reference, program = (load_model(fused, "cpu", qparams, engine) for engine in ("ppq", "program"))
    equal = torch.equal(reference(images), program(images))
    work = {REFERENCE: lambda: reference(images), PROGRAM: lambda: program(images), **others}
    return rows("simulation", interleaved(work, rounds), REFERENCE, {PROGRAM: equal})


def calibration(
    fused: FusedModel, planned: Plan, batches: Sequence[Tensor], rounds: int
) -> list[dict[str, Any]]:
    """Rows of both calibrations; the plan is drawn up anew for each, for it takes the scales.

    Args:
        batches: images [B, C, H, W], normalised; PPQ refuses fewer than eight.
    """
    times: dict[str, list[float]] = {PPQ_PASS: [], OURS: []}
    scales: dict[str, list[Tensor]] = {}
    for _ in range(rounds):
        for name, do in ((PPQ_PASS, _ppq_pass), (OURS, _ours)):
            seconds, scales[name] = do(fused, planned(), batches)
            times[name].append(seconds)
    pairs = zip(scales[PPQ_PASS], scales[OURS], strict=True)
    equal = all(torch.equal(a.flatten(), b.flatten()) for a, b in pairs)
    return rows("calibration", times, PPQ_PASS, {OURS: equal})


def rows(
    measure: str, times: dict[str, list[float]], base: str, equal: dict[str, bool]
) -> list[dict[str, Any]]:
    """Seconds and ratios to the base, medians with quartiles."""
    faster = ratios(times, base)
    found = []
    for name, values in times.items():
        row: dict[str, Any] = {"measure": measure, "contestant": name, "equal": equal.get(name)}
        shown = [f"{value:.4f}" for value in quartiles(values)]
        row |= dict(zip(("seconds", "low", "high"), shown, strict=True))
        shown = [f"{value:.3f}" for value in faster[name]]
        found.append(row | dict(zip(("ratio", "ratio_low", "ratio_high"), shown, strict=True)))
    return found


def _ours(
    fused: FusedModel, planned: list[QuantizedOperator], batches: Sequence[Tensor]
) -> tuple[float, list[Tensor]]:
    model = SimulatedModel(fused.graph, "cpu", planned)
    start = time.perf_counter()
    with quiet(stderr=True):
        calibrate(model, planned, batches)
    found = time.perf_counter() - start
    return found, [tensor.scale for item in planned for tensor in item.tensors if tensor.scale is not None]


def _ppq_pass(
    fused: FusedModel, planned: list[QuantizedOperator], batches: Sequence[Tensor]
) -> tuple[float, list[Tensor]]:
    """PPQ's passes on the same graph with the same configurations."""
    engine = SimulatedModel(fused.graph, "cpu", planned, "ppq").ppq
    (graph_input,) = engine.graph.inputs.values()
    graph_input.shape = [1, *batches[0].shape[1:]]
    given = {"graph": engine.graph, "dataloader": list(batches), "executor": engine.executor}
    optim = ppq.quantization.optim
    start = time.perf_counter()
    with quiet(stdout=True, stderr=True):
        optim.ParameterQuantizePass().optimize(**given)
        optim.RuntimeCalibrationPass().optimize(**given, calib_steps=len(batches), collate_fn=None)
    found = time.perf_counter() - start
    return found, [config.scale for item in planned for config in engine.configs(item.operator.name)]
