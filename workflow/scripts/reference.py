"""Stage reference: what the model gives in floating point for all evaluation images; its accuracy, if any."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_images, add_model, evaluated_images, open_model
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary import records


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is kept")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json")
    parser.add_argument("--out-reference", type=Path, required=True, help="reference.safetensors")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    with Stage(
        "reference",
        inputs=[*fused_files(args.model), args.manifest, *source.files],
        outputs=[args.out, args.out_reference],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        fused = open_model(args)
        images = evaluated_images(args, fused, source, args.batch_size)
        spec = attention_spec(fused.report.attention, args.block)
        reference = Reference.of(load_model(fused, device), images, spec)
        made_from = reference_of(fused.sha256, args.manifest, spec)
        reference.save(stage.temporary(args.out_reference), made_from)
        records.write(stage.temporary(args.out), reference.metrics(images))


if __name__ == "__main__":
    run(main)
