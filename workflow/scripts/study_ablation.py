"""Stage study_ablation: calibrate and evaluate several recipes on the same images, one row each."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_images, add_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.ablation import METRICS, RUN
from ptq2themoon.study.ablation_runs import Bench, add_bench
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.study.names import VARIANTS
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--recipes", type=Path, nargs="+", required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True, help="how recipes are read")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--bits", help="as w8a8")
    which.add_argument("--bits-from", type=Path, help="bits.json of study_bits: the narrow ones")
    add_bench(parser)
    parser.add_argument("--seed", type=int, required=True, help="that drew the calibration; for the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    bits = args.bits or read(args.bits_from, NarrowBits).narrow
    recipes = [load_recipe(path, [parse_bits(bits)]) for path in args.recipes]
    files = (*fused_files(args.model), args.manifest, args.calibration, args.reference)
    with Stage(
        "study_ablation",
        inputs=[
            *files,
            *source.files,
            *dict.fromkeys(path for recipe in recipes for path in recipe.sources),
            *([args.bits_from] if args.bits_from else []),
        ],
        outputs=[args.out],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "recipes": [recipe.name for recipe in recipes],
            "variant": args.variant,
            "bits": bits,
            "calibration_batch_size": args.calibration_batch_size,
            "images": args.images,
            "batch_size": args.batch_size,
            "block": args.block,
        },
        seed=args.seed,
        device=device,
    ) as stage:
        bench = Bench.open(args, source, device)
        variants = [bench.subject.read_as(recipe, args.variant) for recipe in recipes]
        for recipe in variants:
            bench.subject.plan(recipe, bits)  # what does not fit the model is named before any is computed
        rows = []
        for recipe in variants:
            metrics = bench.metrics(recipe, bits, args.seed)
            drawn = bench.calibration.images, args.seed, metrics.images
            figures = (getattr(metrics, name) for name in METRICS)
            rows.append((recipe.name, bits, args.variant, *drawn, *figures))
        table = pd.DataFrame(rows, columns=RUN)
        table.to_csv(stage.temporary(args.out), index=False, float_format="%.8g")


if __name__ == "__main__":
    run(main)
