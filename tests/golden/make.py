"""Write the golden files; with `--models`, images and models too.

    PYTHONPATH=tests:tests/support python -m golden.make

Only for a change that is meant to change them, with the reason in the commit's message. Processors
differ in the last digits, so one machine makes them all.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import onnx
import torch
from golden import cases, today
from golden.cases import ARRAYS, HERE, IMAGES, MODELS, RECIPES, TABLE, Case, Images, Names
from safetensors.numpy import save_file
from tiny_models import to_onnx

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators

BITS = ("w8a8", "w4a4")
ALSO = tuple(Case(model, "vanilla", "w4a8") for model in MODELS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", action="store_true", help="write images, graphs and fusion reports too")
    torch.set_num_threads(1)
    if parser.parse_args().models:
        write_images()
        for name in MODELS:
            write_model(name, Images.read())
    write_golden(Images.read())


def write_images() -> None:
    """Coarse patterns of different contrast, with noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (16, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    noise = random.integers(-128, 128, (16, 3, 32, 32)) * np.arange(16)[:, None, None, None] // 16
    pixels = np.clip(coarse + noise, 0, 255).astype(np.uint8)
    save_file({"images": pixels, "labels": np.arange(16) % 5}, IMAGES)


def write_model(name: str, images: Images) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    fused, _ = fuse(normalise(to_onnx(cases.module(name, images), (1, 3, 32, 32))))
    rename_operators(fused, find_roles(fused))
    onnx.save(fused, folder / "fused.onnx")


def write_golden(images: Images) -> None:
    arrays: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {"models": {}, "cases": {}, "refused": {}}
    names: dict[str, Names] = {}
    for model in MODELS:
        arrays[model] = today.floating(HERE / model, images.pixels)
        names[model] = Names.of(cases.quantized(Case(model, "vanilla", "w8a8"), images))
        table["models"][model] = {"fingerprint": cases.fingerprint(model, images), **names[model]._asdict()}
    for case in (*(Case(m, recipe, bits) for m in MODELS for recipe in RECIPES for bits in BITS), *ALSO):
        try:
            model = cases.quantized(case, images)
        except today.UserError as error:
            table["refused"][str(case)] = str(error).replace(f"{RECIPES[case.recipe].parent}/", "")
            continue
        arrays[f"{case}.tensors"], arrays[f"{case}.scales"] = cases.scales(model, names[case.model])
        arrays[f"{case}.logits"] = today.logits(model, images.pixels)
        arrays[f"{case}.errors"] = cases.errors(model, images, names[case.model])
        measured = today.metrics(model, images.evaluation())
        table["cases"][str(case)] = {"metrics": measured, "deployed": cases.deployed(model)}
    save_file(arrays, ARRAYS)
    TABLE.write_text(in_lines(table) + "\n", encoding="utf-8")


def in_lines(table: dict[str, dict[str, Any]]) -> str:
    """As JSON with one line for each model and case."""
    parts = []
    for name, entries in table.items():
        lines = (f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    main()
