"""Stage benchmark_runtimes: our INT8 models and other tools', by turns in one run; needs `make peers`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import load_file

from ptq2themoon.benchmark import peers
from ptq2themoon.benchmark.arena import BASE, LATENCY, OPERATORS, PEERS, Arena, Entry
from ptq2themoon.benchmark.channelwise import per_axis
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.benchmark.runtimes import OpenVino, Precision
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.records import write_json
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkRuntimes

PACKAGES = ("onnxruntime", "openvino", "nncf", "onnx", "numpy")
HINTS: tuple[Precision, ...] = ("f32", "bf16")
TOOL = "ptq2themoon"


def images_and_labels(path: Path, info: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Float32 [N, C, H, W], normalised as the model wants them, and labels [N] where all are known."""
    preprocessing = json.loads(info.read_text(encoding="utf-8"))["preprocessing"]
    mean, std = (np.float32(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    arrays = load_file(path)
    labels = arrays["labels"]
    images = (arrays["images"].astype(np.float32) / np.float32(255) - mean) / std
    return images, labels if (labels >= 0).all() else None


def both_runtimes(tool: str, variant: str, path: Path, *, quantized: bool = True) -> list[Entry]:
    found = [Entry(tool, variant, path, quantized=quantized)]
    return found + [Entry(tool, variant, path, "OpenVINO", hint, quantized) for hint in HINTS]


def entries(job: BenchmarkRuntimes, ours: dict[str, Path], images: np.ndarray, folder: Path) -> list[Entry]:
    """Every model in every runtime that it is for; the peers are made here."""
    found = both_runtimes("-", "FP32", job.model, quantized=False)
    for variant, path in ours.items():
        found += (
            both_runtimes(TOOL, variant, path) if variant.endswith("fast") else [Entry(TOOL, variant, path)]
        )
        model, changed = per_axis(read_graph(path))
        if changed and variant.endswith("fast"):
            write_model(model, folder / f"{len(found)}.onnx")
            found.append(Entry(TOOL, f"{variant}, scales along the axis", folder / f"{len(found)}.onnx"))
    (name,) = (item.name for item in onnx.load(job.model, load_external_data=False).graph.input)
    static = peers.static(job.model, name, images, folder / "static.onnx")
    found.append(Entry("ONNX Runtime", "static", static))
    found.append(Entry("ONNX Runtime", "dynamic", peers.dynamic(job.model, folder / "dynamic.onnx")))
    nncf = peers.nncf_model(OpenVino(job.threads).read(job.model), images, folder / "nncf.xml")
    found += [Entry("NNCF", "mixed preset", nncf, "OpenVINO", hint) for hint in HINTS]
    return found + ([Entry("PPQ", "its own export", job.ppq)] if job.ppq else [])


def main(job: BenchmarkRuntimes) -> None:
    for option in ("rounds", "threads"):
        at_least(1, getattr(job, option), f"--{option}")
    ours = named_paths(job.ours, "--ours")
    with Stage.of(job) as stage, tempfile.TemporaryDirectory() as temporary:
        facts = machine(job.threads, PACKAGES)
        images, _ = images_and_labels(job.calibration, job.info)
        arena = Arena(job.name, entries(job, ours, images, Path(temporary)), job.threads, Path(temporary))
        batches = [np.resize(images, (batch, *images.shape[1:])) for batch in job.batches]
        latency = [row for batch in batches for row in arena.latency(batch, job.rounds)]
        tested, labels = images_and_labels(job.evaluation, job.info) if job.evaluation else (None, None)
        comparison = arena.comparison(tested, labels, max(job.batches))
        operators = [row for batch in batches for row in arena.operators(batch, job.rounds)]
        write_json(stage.temporary(job.out_machine), {"model": job.name, "base": BASE, **facts})
        write_csv(stage.temporary(job.out_latency), LATENCY, latency)
        write_csv(stage.temporary(job.out_peers), PEERS, comparison)
        write_csv(stage.temporary(job.out_operators), OPERATORS, operators)


if __name__ == "__main__":
    run_job(main, BenchmarkRuntimes)
