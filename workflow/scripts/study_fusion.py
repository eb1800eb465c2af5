"""Stage study_fusion: operators and time an image, with and without fusion, in two executors."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
import pandas as pd
import torch

from ptq2themoon.benchmark.fusion import (
    COLUMNS,
    COUNTS,
    WITH,
    WITHOUT,
    Form,
    comparison,
    contestants,
    operator_counts,
    same_logits,
    without_fusion,
)
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.graph.fused_model import FusedModel, fused_files
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.parameters import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the table calls the model")
    parser.add_argument("--model", type=Path, required=True, help="folder of model.onnx and the fused model")
    parser.add_argument(
        "--recipe", type=Path, required=True, help="one that names no role, block or operator"
    )
    parser.add_argument("--bits", required=True, help="as w8a8")
    parser.add_argument("--images", type=Path, required=True, help="calibration images")
    parser.add_argument("--calibration-count", type=int, default=8, help="of them, at most")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="fusion.csv")
    parser.add_argument("--out-operators", type=Path, required=True, help="fusion_operators.csv")
    args = parser.parse_args()
    for option in ("calibration_count", "rounds", "threads"):
        at_least(1, getattr(args, option), f"--{option.replace('_', '-')}")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    recipe, bits = load_recipe(args.recipe), parse_bits(args.bits)
    settings = {key: getattr(args, key) for key in ("bits", "calibration_count", "rounds", "threads")}
    with (
        Stage(
            "study_fusion",
            inputs=[args.model / "model.onnx", *fused_files(args.model), args.images, *recipe.sources],
            outputs=[args.out, args.out_operators],
            parameters={"model": args.name, "recipe": recipe.name, **settings},
            device="cpu",
        ) as stage,
        tempfile.TemporaryDirectory() as temporary,
    ):
        stage.parameters["machine"] = machine(args.threads, ("torch", "onnxruntime", "ppq"))
        folder = Path(temporary)
        fused = FusedModel.open(args.model)
        preprocessing = Preprocessing.of(fused.info)
        images = next(iter(calibration_batches(args.images, preprocessing, args.calibration_count))).numpy()
        onnx.save(without_fusion(args.model / "model.onnx"), folder / "model.onnx")
        paths = {WITHOUT: folder / "model.onnx", WITH: fused.path}
        forms = [Form(fusion, path, recipe, bits, images) for fusion, path in paths.items()]
        logits = same_logits(forms)
        found = contestants(forms, args.bits, args.threads, folder)
        table = pd.DataFrame(comparison(found, images, logits, args.rounds))
        table = table.assign(model=args.name, threads=args.threads, rounds=args.rounds)
        table = table.reindex(columns=COLUMNS).astype(dict.fromkeys(COUNTS, "Int64"))
        table.to_csv(stage.temporary(args.out), index=False, float_format="%.6g")
        operator_counts(forms).to_csv(stage.temporary(args.out_operators), index=False)


if __name__ == "__main__":
    run(main)
