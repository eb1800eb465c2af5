"""Stage study_rollout: attention rollout over all blocks, of a few images; or why the model has none."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, few_images, open_source, read_manifest
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_model_and_images, open_model
from ptq2themoon.evaluate.attention import attention_specs
from ptq2themoon.evaluate.rollout import run_with_rollout, save_rollout, why_undefined
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="name for the figure; fp32 for floating point")
    add_model_and_images(parser, floating_point=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    with Stage(
        "study_rollout",
        inputs=[*fused_files(args.model), args.manifest, *source.files, *(args.qparams or [])],
        outputs=[args.out],
        parameters={
            "recipe": args.recipe,
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
        },
        device=device,
    ) as stage:
        fused = open_model(args)
        specs = attention_specs(fused.report.attention)
        preprocessing = Preprocessing.of(fused.info)
        few = few_images(source, read_manifest(args.manifest), args.images, args.manifest, preprocessing)
        found = None
        if not why_undefined(specs):
            model = load_model(fused, device, args.qparams)
            found = run_with_rollout(model, few.normalised, specs)
        save_rollout(stage.temporary(args.out), few, found, specs, args.recipe)


if __name__ == "__main__":
    run(main)
