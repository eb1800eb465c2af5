"""Measure how the memory of a stage grows with the number of images: each run in a process of its own."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import tyro
from torch import Tensor

from ptq2themoon.benchmark.random_models import random_images
from ptq2themoon.data.image_files import Row, write_images, write_manifest
from ptq2themoon.data.sources import ArraySource
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.progress import progress
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1] / "pipeline"
COLUMNS = ("stage", "model", "recipe", "bits", "images", "memory_mb")
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of what the system counts, in a megabyte
DISTINCT = 64  # images, which follow each other again and again
Measured = Literal["calibrate", "reference", "evaluate"]


def memory(
    models: Sequence[Path],
    stages: Sequence[Measured] = ("calibrate",),
    recipes: Sequence[str] = ("papers", "smoothquant", "repq_vit", "gptq", "erq", "ship"),
    images: Sequence[int] = (8, 32, 128),
    bits: str = "w4a4",
    batch_size: int = 32,
    out: Path = Path("results/benchmarks/calibration_memory.csv"),
) -> None:
    """Measure the largest resident memory of the process of each stage, on random images.

    Args:
        models: folders of fused models.
        stages: calibrate, reference (in floating point on all images), evaluate (quantized, on all images).
        recipes: names of files in recipes/; evaluate takes the first.
        images: how many each run sees.
        bits: of weights and activations.
        batch_size: images in a batch.
        out: CSV, one row per run.
    """
    files = [Path("recipes", f"{name}.yaml") for name in recipes]
    inputs = [*(model / "fused.onnx" for model in models), *files]
    parameters = {"stages": list(stages), "images": list(images), "bits": bits, "batch_size": batch_size}
    with Stage("memory", inputs=inputs, outputs=[out], parameters=parameters) as stage:
        runs = [(model, count) for model in models for count in images]
        rows = []
        for model, count in progress(runs, desc="runs"):
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(Path(folder), model, count, bits, batch_size)
                rows += [(*row[:1], model.name, *row[1:]) for row in bench.rows(stages, files)]
        ordered = sorted(rows, key=lambda row: row[:5])
        write_csv(stage.temporary(out), COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in ordered))


class Bench:
    """Stages of one model on so many images, their files in a folder of their own."""

    def __init__(self, folder: Path, model: Path, count: int, bits: str, batch_size: int) -> None:
        self.folder, self.model, self.count, self.bits, self.size = folder, model, count, bits, batch_size
        shape = FusedModel.open(model).info.preprocessing.input_size
        random_images(DISTINCT, shape, 0, folder / "few.safetensors")
        few = ArraySource(folder / "few.safetensors").rows(0, DISTINCT)
        write_images(folder / "images.safetensors", repeated(few, count), [count, *shape], {})
        write_manifest(folder / "evaluation.csv", (Row(str(index), -1) for index in range(count)))

    def rows(self, stages: Sequence[Measured], recipes: Sequence[Path]) -> Iterator[tuple[Any, ...]]:
        """(stage, recipe, bits, images, megabytes) of each run."""
        if "calibrate" in stages:
            for recipe in recipes:
                yield "calibrate", recipe.stem, self.bits, self.count, self.calibrate(recipe, "images")
        if {"reference", "evaluate"} & set(stages):
            floating = self.evaluate("reference", out="fp32.json", out_reference="reference.safetensors")
            if "reference" in stages:
                yield "reference", "fp32", "fp32", self.count, floating
        if "evaluate" in stages:
            self.calibrate(recipes[0], "few")
            found = self.evaluate(
                "evaluate", qparams="qparams.json qparams.safetensors", reference="reference.safetensors",
                out="metrics.json", out_attention="attention.csv", out_simulated="simulated.safetensors",
            )  # fmt: skip
            yield "evaluate", recipes[0].stem, self.bits, self.count, found

    def calibrate(self, recipe: Path, images: str) -> int:
        """Megabytes of a calibration."""
        options = ["--recipe", str(recipe), "--bits", self.bits]
        made = {"out": "qparams.json", "out_arrays": "qparams.safetensors"}
        return self._peak("calibrate", options, {"images": f"{images}.safetensors", **made})

    def evaluate(self, stage: str, **files: str) -> int:
        """Megabytes of a stage on all images."""
        listed = {"source": "images.safetensors", "manifest": "evaluation.csv"}
        return self._peak(stage, ["--kind", "arrays"], listed | files)

    def _peak(self, stage: str, options: Sequence[str], files: dict[str, str]) -> int:
        words = ["--model", str(self.model), "--device", "cpu", "--batch-size", str(self.size), *options]
        for name, named in files.items():
            words += [f"--{name.replace('_', '-')}", *(str(self.folder / file) for file in named.split())]
        return peak(SCRIPTS / f"{stage}.py", words)


def repeated(images: Tensor, count: int) -> Iterator[tuple[Tensor, int, int]]:
    """`count` images without a label."""
    return ((images[index % len(images)], -1, index) for index in range(count))


def peak(script: Path, words: Sequence[str]) -> int:
    """Largest resident memory of a stage in megabytes; a fork runs it, which spares the imports."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _run(script, words, said.fileno())
        _, status, usage = os.wait4(child, 0)  # of this child alone, not of all before it
        if status:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"a stage failed: {lines[-1] if lines else 'without a word'}")
    return round(usage.ru_maxrss / UNIT)


def _run(script: Path, words: Sequence[str], said: int) -> NoReturn:
    """Never returns: what a stage raises must not go on in a copy of this tool."""
    status = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no threads but its own
    run(lambda: tyro.cli(memory))
