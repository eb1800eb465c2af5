"""Stage study_bits: the first bits at which a recipe loses more than so many points."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import calibration_batches, open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.errors import at_least
from ptq2themoon.evaluate.arguments import add_images, add_model, evaluated_images
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.quantize.bits import parse_bits
from ptq2themoon.quantize.recipe import load_recipe
from ptq2themoon.stage import Stage, run, write_json
from ptq2themoon.study.ablation import lost
from ptq2themoon.study.files import read_floating
from ptq2themoon.study.quantizing import Subject
from ptq2themoon.study.reference import Reference


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--bits", nargs="+", required=True, help="to try, in this order")
    parser.add_argument("--loss", type=float, required=True, help="percentage points")
    parser.add_argument("--calibration", type=Path, required=True, help="calibration images")
    parser.add_argument("--calibration-batch-size", type=int, required=True)
    parser.add_argument("--reference", type=Path, required=True, help="reference.safetensors")
    parser.add_argument("--metrics", type=Path, required=True, help="fp32.json")
    parser.add_argument("--images", type=int, required=True, help="as in the reference")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1)
    parser.add_argument("--out", type=Path, required=True, help="bits.json")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    at_least(1, args.images, "--images")
    for bits in args.bits:
        parse_bits(bits)
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    recipe = load_recipe(args.recipe)
    files = (
        args.graph,
        args.fusion,
        args.info,
        args.manifest,
        args.calibration,
        args.reference,
        args.metrics,
    )
    with Stage(
        "study_bits",
        inputs=[*files, *source.files, *recipe.sources],
        outputs=[args.out],
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
        images = evaluated_images(args, source, args.batch_size, args.images)
        subject = Subject.read(args.graph, args.fusion, device)
        calibration = calibration_batches(
            args.calibration, images.batches.preprocessing, args.calibration_batch_size
        )
        reference, spec = Reference.load(args.reference), attention_spec(args.fusion, args.block)
        floating = read_floating(args.metrics)
        tried = []
        for bits in args.bits:
            model = subject.model(subject.quantized(recipe, bits, calibration))
            measure, points = lost(reference.evaluate(model, images, spec).metrics, floating)
            tried.append({"bits": bits, "measure": measure, "lost": points})
            if points > args.loss:
                break
        chosen = {"narrow": bits, "loses_more": points > args.loss, "loss": args.loss}
        write_json(stage.temporary(args.out), {**chosen, "tried": tried})


if __name__ == "__main__":
    run(main)
