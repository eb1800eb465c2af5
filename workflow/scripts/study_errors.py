"""Stage study_errors: what a scale a tensor, and one a channel, does to the layers' inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, batches, open_source, read_manifest, spread
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_images, add_model, open_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.input_errors import InputErrors, averages, input_tensors
from ptq2themoon.study.layer_inputs import read_layers, watch_inputs
from ptq2themoon.study.names import PER_CHANNEL, PER_TENSOR, block_index


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    add_images(parser)
    pair = {"type": Path, "nargs": 2, "required": True, "metavar": ("JSON", "SAFETENSORS")}
    parser.add_argument("--per-tensor", help="qparams with one scale an input", **pair)
    parser.add_argument("--per-channel", help="qparams with one scale a channel of an input", **pair)
    parser.add_argument("--images", type=int, required=True, help="at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--block", type=int, required=True, help="whose channels have a table of their own")
    parser.add_argument("--out", type=Path, required=True, help="errors.csv")
    parser.add_argument("--out-average", type=Path, required=True, help="errors_average.csv")
    parser.add_argument("--out-histograms", type=Path, required=True, help="error_histograms.csv")
    parser.add_argument("--out-channels", type=Path, required=True, help="error_channels.csv")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    qparams = {PER_TENSOR: args.per_tensor, PER_CHANNEL: args.per_channel}
    with Stage(
        "study_errors",
        inputs=[
            *(*fused_files(args.model), args.manifest),
            *source.files,
            *args.per_tensor,
            *args.per_channel,
        ],
        outputs=[args.out, args.out_average, args.out_histograms, args.out_channels],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        manifest = read_manifest(args.manifest)
        rows = spread(manifest, min(args.images, len(manifest)), "--images", args.manifest)
        fused = open_model(args)
        for pair in qparams.values():
            fused.check_parameters(pair)
        found = read_layers(fused)
        block = block_index(args.block, found.blocks, "study.block")
        tensors = {name: input_tensors(pair, found.layers, name) for name, pair in qparams.items()}
        errors = InputErrors(tensors, device)
        images = (x for x, _ in batches(rows, source, Preprocessing.of(fused.info), args.batch_size))
        watch_inputs(load_model(fused, device), images, found.layers, errors.see)
        table = errors.table(found.note)
        tables = {
            args.out: table,
            args.out_average: averages(table),
            args.out_histograms: errors.histograms(),
            args.out_channels: errors.channels(block),
        }
        for path, each in tables.items():
            each.to_csv(stage.temporary(path), index=False, float_format="%.6g")


if __name__ == "__main__":
    run(main)
