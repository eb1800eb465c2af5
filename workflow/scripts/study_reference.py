"""Stage study_reference: what the model gives in floating point on the images of the ablation."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.errors import at_least
from ptq2themoon.evaluate.arguments import add_images, add_model, evaluated_images
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run, write_json
from ptq2themoon.study.reference import Reference


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--images", type=int, required=True, help="of the manifest, at most")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is compared")
    parser.add_argument("--out", type=Path, required=True, help="reference.safetensors")
    parser.add_argument("--out-metrics", type=Path, required=True, help="fp32.json")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    at_least(1, args.images, "--images")
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    with Stage(
        "study_reference",
        inputs=[args.graph, args.fusion, args.info, args.manifest, *source.files],
        outputs=[args.out, args.out_metrics],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        images = evaluated_images(args, source, args.batch_size, args.images)
        model = load_model(args.graph, device)
        reference = Reference.of(model, images, attention_spec(args.fusion, args.block))
        reference.save(stage.temporary(args.out))
        write_json(stage.temporary(args.out_metrics), reference.metrics(images))


if __name__ == "__main__":
    run(main)
