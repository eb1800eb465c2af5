"""Stage study_activations: minimum and maximum of each channel of the layers' inputs, in floating point."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_images, add_model, evaluated_images, open_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.layer_inputs import Ranges, channel_table, largest_table, read_layers, watch_inputs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    parser.add_argument("--images", type=int, required=True, help="at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="activations.csv")
    parser.add_argument("--out-largest", type=Path, required=True, help="activations_largest.csv")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    with Stage(
        "study_activations",
        inputs=[*fused_files(args.model), args.manifest, *source.files],
        outputs=[args.out, args.out_largest],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
            "batch_size": args.batch_size,
        },
        device=device,
    ) as stage:
        fused = open_model(args)
        batches = evaluated_images(args, fused, source, args.batch_size, args.images).batches
        found, ranges = read_layers(fused), Ranges()
        images = (x for x, _ in batches)
        watch_inputs(load_model(fused, device), images, found.layers, ranges.see)
        channels = channel_table(ranges)
        channels.to_csv(stage.temporary(args.out), index=False, float_format="%.5g")
        largest = largest_table(ranges, len(batches.rows), found.note)
        largest.to_csv(stage.temporary(args.out_largest), index=False, float_format="%.6g")


if __name__ == "__main__":
    run(main)
