"""A small member of a family through all stages: what the simulation gives, and what ONNX Runtime does.

The images are noise: what they show does not matter to models with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from exporter_matrix import ROWS, module
from families import image_shape
from relatives import RELATIVES, exported
from safetensors.numpy import save_file
from tiny_models import to_onnx
from tiny_stages import ROOT, run_stage

from ptq2themoon.graph.editing.onnx_run import integer_products

CHAIN_HEAD = (
    "Family", "Simulated", "`faithful`", "`fast`", "`faithful`: integer products", "`fast`: integer products",
)  # fmt: skip
LABELS = {**ROWS, **{name: relative.label for name, relative in RELATIVES.items()}}
RECIPE = "recipes/vanilla.yaml"  # quantizes every operator of every family
MODES = ("faithful", "fast")
NORMALISATION = json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3})


def chain_row(name: str) -> list[str]:
    """A family's cells: SQNR in dB against floating point, then products on integer kernels of all."""
    with TemporaryDirectory() as folder:
        found = _chain(name, Path(folder))
    modes = [found[mode] for mode in MODES]
    errors = [modes[0]["simulated_logits_sqnr_db"], *(mode["logits_sqnr_db"] for mode in modes)]
    return [LABELS[name], *(f"{error:.0f} dB" for error in errors), *map(_kernels, modes)]


def _kernels(found: dict[str, Any]) -> str:
    """How many products run on integer kernels, of all, and how many deploy.json says where it differs."""
    counts, claimed = found["kernels"], found["claimed"]
    runs = integer_products(counts)
    return f"{runs} of {sum(counts.values())}" + (f" ({claimed} claimed)" if claimed != runs else "")


def _chain(name: str, folder: Path) -> dict[str, Any]:
    """runtime.json of a family's member, with what deploy.json claims, from its ONNX file by all stages."""
    _write_inputs(name, folder)

    def run(stage: str, **changes: Any) -> None:
        ended = run_stage(folder, stage, **changes)
        assert ended.status == 0, f"{name}: {stage}: {ended.err}"

    run("export", source="onnx:source.onnx", preprocessing=NORMALISATION)
    for stage in ("draw_calibration", "list_evaluation", "fuse"):
        run(stage)
    run("calibrate", recipe=RECIPE)
    run("reference")
    run("evaluate")
    int8 = [f"out/q/{mode}/int8.onnx" for mode in MODES]
    reports = [f"out/q/{mode}/deploy.json" for mode in MODES]
    for mode, file, report in zip(MODES, int8, reports, strict=True):
        run("deploy", mode=mode, out=file, out_report=report)
    run("verify_runtime", int8=int8, deployed=reports)
    found = json.loads((folder / "out/q/runtime.json").read_text())
    for mode, report in zip(MODES, reports, strict=True):
        found[mode]["claimed"] = json.loads((folder / report).read_text())["products"]["integer"]
    return found


def _write_inputs(name: str, folder: Path) -> None:
    """The model's file, recipes, and images of its size."""
    if name in RELATIVES:
        model, size = exported(name)[1], RELATIVES[name].size
    else:
        model, size = to_onnx(module(name), (1, *image_shape(name))), image_shape(name)[1]
    onnx.save(model, folder / "source.onnx")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for seed, images in enumerate(("calibration", "evaluation")):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 3, size, size), dtype=np.uint8)
        save_file({"images": pixels}, folder / f"{images}.safetensors")
