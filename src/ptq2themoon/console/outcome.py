"""What a quantization gave: cost, speed on this machine, and the file to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ptq2themoon.benchmark.runtimes import OpenVino, openvino_runner
from ptq2themoon.benchmark.timing import interleaved, ratios
from ptq2themoon.deploy.deploy_records import RuntimeMetrics, RuntimeReport
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.graph.editing.onnx_run import Runner, runner, session
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import Run
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.onnx_data import model_bytes
from ptq2themoon.vocabulary.records import read

ROUNDS = 11


@dataclass(frozen=True)
class Outcome:
    """One deployed model.

    Attributes:
        metrics: of that model in ONNX Runtime, against the model in floating point.
        plain_top1: of the model in floating point; None without labels.
        megabytes: of floating point and of the INT8 model.
        times: by runtime: milliseconds of floating point and of INT8 for one image, and the ratio.
    """

    run: Run
    metrics: RuntimeMetrics
    plain_top1: float | None
    megabytes: tuple[float, float]
    times: dict[str, tuple[float, float, float]]


def outcome(folder: Path, run: Run, threads: int) -> Outcome:
    """Read what the workflow wrote, and time both models by turns, medians over rounds.

    Args:
        folder: where Snakemake ran.
        threads: of each runtime.
    """
    run = run.as_mode(layout.SHIPPED)

    def at(pattern: str) -> Path:
        return folder / layout.fill(pattern, run)

    plain, int8 = at(layout.ONNX_MODEL), at(layout.INT8)
    metrics = read(at(layout.RUNTIME), RuntimeReport).fast
    if metrics is None:
        raise UserError(f"{int8}: mode {layout.SHIPPED} was not deployed; name it under deploy.modes")
    images = np.zeros((1, *read(at(layout.MODEL_INFO), ModelInfo).input_size), np.float32)
    runs = [ort(path, threads, quantized=quantized) for path, quantized in ((plain, False), (int8, True))]
    times = {"ONNX Runtime": timed(runs, images)}
    if find_spec("openvino"):
        vino = OpenVino(threads)
        runs = [openvino_runner(vino.compile(path, images.shape, "f32")) for path in (plain, int8)]
        times["OpenVINO"] = timed(runs, images)
    sizes = model_bytes(plain) / 1e6, model_bytes(int8) / 1e6
    return Outcome(run, metrics, read(at(layout.FP32_METRICS), Metrics).top1, sizes, times)


def ort(path: Path, threads: int, *, quantized: bool) -> Runner:
    """A function from images to the output of a model in ONNX Runtime."""
    return runner(session(path, threads=threads, quantized=quantized))


def timed(runs: Sequence[Runner], images: np.ndarray) -> tuple[float, float, float]:
    """Milliseconds of floating point and of INT8 for one call, and how many times faster that is; medians."""
    work = {name: partial(each, images) for name, each in zip(("fp32", "int8"), runs, strict=True)}
    times = interleaved(work, ROUNDS, "fp32")
    median = {name: float(np.median(values)) * 1000 for name, values in times.items()}
    return median["fp32"], median["int8"], ratios(times, "fp32")["int8"].median
