"""Stage calibrate: fused.onnx and a recipe to qparams.json and qparams.safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_model, open_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.pipeline import quantize
from ptq2themoon.quantize.plan import protocol
from ptq2themoon.quantize.qparams import Header, write_qparams
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.parameters import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--bits", required=True, help="as w8a8")
    parser.add_argument("--images", type=Path, required=True, help="calibration images")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of what methods draw")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-arrays", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    recipe = load_recipe(args.recipe)
    bits = parse_bits(args.bits)
    device = resolve_device(args.device)
    parameters = {
        "recipe": recipe.name,
        **recipe.resolved(),
        "bits": args.bits,
        "batch_size": args.batch_size,
    }
    with Stage(
        "calibrate",
        inputs=[*fused_files(args.model), args.images, *recipe.sources],
        outputs=[args.out, args.out_arrays],
        parameters=parameters,
        seed=args.seed,
        device=device,
    ) as stage:
        fused = open_model(args)
        batches = calibration_batches(args.images, Preprocessing.of(fused.info), args.batch_size)
        model = quantize(fused.graph, fused.operators, recipe, bits, batches, device, args.seed)
        header = Header(
            recipe=recipe.name,
            bits=args.bits,
            protocol=protocol(model.quantized),
            methods=[call.model_dump() for call in recipe.methods],
            calibration_images=batches.images,
            graph_sha256=fused.sha256,
        )
        write_qparams(model, header, stage.temporary(args.out), stage.temporary(args.out_arrays))


if __name__ == "__main__":
    run(main)
