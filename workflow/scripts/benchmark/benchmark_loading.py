"""Is reading images as fast as the smallest usual model? JPEGs of 500x375 against FP32 DeiT-Tiny.

Both in one run and on the same cores, by turns: rates of one machine at another time can't be compared.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import timm
import torch
from PIL import Image

from ptq2themoon.benchmark.timing import interleaved
from ptq2themoon.data import Batches, FolderSource, Preprocessing, Row, batches
from ptq2themoon.data.loading import thread_count
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkLoading

WIDTH, HEIGHT, QUALITY = 500, 375, 90
COLUMNS = ("measure", "images", "repeats", "cores", "images_per_second", "lowest", "highest", "loading_ratio")
LOADING = "read, resize, crop"


def write_jpegs(folder: Path, count: int, seed: int = 0) -> float:
    """Blurred noise with grain, about as large as photographs are; returns kilobytes an image."""
    generator, size = np.random.default_rng(seed), 0
    for number in range(count):
        rough = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        grain = generator.normal(0, 12, (HEIGHT, WIDTH, 1))
        path = folder / f"{number:05}.jpg"
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        size += path.stat().st_size
    return round(size / count / 1000, 1)


def make_model(name: str) -> tuple[torch.nn.Module, Preprocessing]:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    config = timm.data.resolve_data_config({}, model=model)
    fields = {key: config[key] for key in Preprocessing.model_fields}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    return model, Preprocessing(**lists)


def session(model: torch.nn.Module, inputs: torch.Tensor, cores: int, folder: Path) -> ort.InferenceSession:
    path, axes = folder / "model.onnx", {"images": {0: "batch"}, "output": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["output"], "dynamic_axes": axes}
    torch.onnx.export(model, (inputs,), str(path), opset_version=17, dynamo=False, **names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def consume(inputs: Iterable[torch.Tensor], forward: Callable[[torch.Tensor], object]) -> None:
    with torch.inference_mode():
        for batch in inputs:
            forward(batch)


def pixels(loader: Batches) -> Iterable[torch.Tensor]:
    return (images for images, _ in loader)


def measure(job: BenchmarkLoading, cores: int, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """A row for each thing measured, and the mean size of a JPEG in kilobytes."""
    torch.set_num_threads(cores)
    kilobytes = write_jpegs(folder, job.images)
    model, preprocessing = make_model(job.model)
    source = FolderSource(folder)
    rows = [Row(key, -1) for key in source.keys]
    loader = batches(rows, source, preprocessing, job.batch_size, cores)
    some = batches(rows[: job.model_images], source, preprocessing, job.batch_size, cores)
    ready = list(pixels(some))
    runtime = session(model, ready[0], cores, folder)

    def run_runtime(batch: torch.Tensor) -> object:
        return runtime.run(None, {"images": batch.numpy()})

    work: dict[str, Callable[[], None]] = {
        LOADING: lambda: consume(pixels(loader), len),
        "FP32 model, ONNX Runtime": lambda: consume(ready, run_runtime),
        "FP32 model, torch": lambda: consume(ready, model),
        "read and FP32 model, ONNX Runtime": lambda: consume(pixels(some), run_runtime),
    }
    counts = dict.fromkeys(work, len(some.rows)) | {LOADING: job.images}
    times = interleaved(work, job.repeats)
    rates = {name: [counts[name] / seconds for seconds in found] for name, found in times.items()}
    loading = statistics.median(rates[LOADING])
    table = []
    for name, found in rates.items():
        rate = statistics.median(found)
        shown = [f"{value:.1f}" for value in (rate, min(found), max(found))]
        values = [name, counts[name], job.repeats, cores, *shown, f"{loading / rate:.2f}"]
        table.append(dict(zip(COLUMNS, values, strict=True)))
    return table, kilobytes


def main(job: BenchmarkLoading) -> None:
    for option in ("images", "model_images", "batch_size", "repeats"):
        at_least(1, getattr(job, option), f"--{option.replace('_', '-')}")
    cores = thread_count(job.cores)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        table, kilobytes = measure(job, cores, Path(folder))
    found = {"cores": cores, "width": WIDTH, "height": HEIGHT, "kilobytes": kilobytes, "load_before": load}
    with Stage.of(job, extra=found) as stage:
        write_csv(stage.temporary(job.out), COLUMNS, table)
    for row in table:
        print("{measure}: {images_per_second} images/s; loading is {loading_ratio} times it".format_map(row))


if __name__ == "__main__":
    run_job(main, BenchmarkLoading)
