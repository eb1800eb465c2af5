"""Measure how the memory of a calibration grows with the number of images: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro

from ptq2themoon.benchmark.random_models import random_images
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.progress import progress
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import UserError

CALIBRATE = Path(__file__).resolve().parents[1] / "pipeline" / "calibrate.py"
COLUMNS = ("model", "recipe", "bits", "images", "memory_mb")
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of what the system counts, in a megabyte


def memory(
    models: Sequence[Path],
    recipes: Sequence[str] = ("papers", "smoothquant", "repq_vit", "gptq", "erq", "ship"),
    images: Sequence[int] = (8, 32, 128),
    bits: str = "w4a4",
    batch_size: int = 32,
    out: Path = Path("results/benchmarks/calibration_memory.csv"),
) -> None:
    """Measure the largest resident memory of the process of each calibration, on random images.

    Args:
        models: folders of fused models.
        recipes: names of files in recipes/.
        images: how many each calibration sees.
        bits: of weights and activations.
        batch_size: images in a batch.
        out: CSV, one row per calibration.
    """
    files = [Path("recipes", f"{name}.yaml") for name in recipes]
    inputs = [*(model / "fused.onnx" for model in models), *files]
    parameters = {"images": list(images), "bits": bits, "batch_size": batch_size}
    runs = [(model, file, count) for model in models for file in files for count in images]
    rows = []
    with Stage("memory", inputs=inputs, outputs=[out], parameters=parameters) as stage:
        for model, file, count in progress(runs, desc="calibrations"):
            found = peak(model, file, count, ["--bits", bits, "--batch-size", str(batch_size)])
            rows.append(dict(zip(COLUMNS, (model.name, file.stem, bits, count, found), strict=True)))
        write_csv(stage.temporary(out), COLUMNS, rows)


def peak(model: Path, recipe: Path, count: int, options: list[str]) -> int:
    """Largest resident memory of a calibration with so many images, in megabytes."""
    shape = FusedModel.open(model).info.preprocessing.input_size
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.safetensors")
        random_images(count, shape, 0, images)
        files = {
            "--model": model, "--recipe": recipe, "--images": images,
            "--out": Path(folder, "qparams.json"), "--out-arrays": Path(folder, "qparams.safetensors"),
        }  # fmt: skip
        words = [str(word) for option in files.items() for word in option]
        return _measured([sys.executable, str(CALIBRATE), *words, *options, "--device", "cpu"])


def _measured(command: list[str]) -> int:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone, not of all before it
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"a calibration failed: {said.splitlines()[-1] if said else 'without a word'}")
    return round(usage.ru_maxrss / UNIT)


if __name__ == "__main__":
    run(lambda: tyro.cli(memory))
