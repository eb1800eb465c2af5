"""Stage study_bits: the first bits at which a recipe loses more than so many points."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_images, add_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.ablation import lost
from ptq2themoon.study.ablation_runs import Bench, add_bench
from ptq2themoon.study.bits_record import NarrowBits, Tried
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--bits", nargs="+", required=True, help="to try, in this order")
    parser.add_argument("--loss", type=float, required=True, help="percentage points")
    add_bench(parser)
    parser.add_argument("--out", type=Path, required=True, help="bits.json")
    parser.add_argument("--out-metrics", type=Path, required=True, help="fp32.json: the reference's metrics")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for bits in args.bits:
        parse_bits(bits)
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    recipe = load_recipe(args.recipe)
    files = (*fused_files(args.model), args.manifest, args.calibration, args.reference)
    with Stage(
        "study_bits",
        inputs=[*files, *source.files, *recipe.sources],
        outputs=[args.out, args.out_metrics],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "recipe": recipe.name,
            "bits": args.bits,
            "loss": args.loss,
            "calibration_batch_size": args.calibration_batch_size,
            "images": args.images,
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        bench = Bench.open(args, source, device)
        floating = bench.reference.metrics(bench.images)
        tried = []
        for bits in args.bits:
            measure, points = lost(bench.metrics(recipe, bits), floating)
            tried.append(Tried(bits=bits, measure=measure, lost=points))
            if points > args.loss:
                break
        found = NarrowBits(narrow=bits, loses_more=points > args.loss, loss=args.loss, tried=tried)
        records.write(stage.temporary(args.out), found)
        records.write(stage.temporary(args.out_metrics), floating)


if __name__ == "__main__":
    run(main)
