"""Stage evaluate: accuracy where there is any; of a quantized model its error against floating point."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.accuracy import evaluate_float, evaluate_quantized
from ptq2themoon.evaluate.arguments import add_model_and_images, evaluated_images
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_and_images(parser, floating_point=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is compared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-attention", type=Path, help="attention.csv, with --qparams")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if bool(args.qparams) != bool(args.out_attention):
        raise UserError("--qparams and --out-attention: give both or neither")
    device = resolve_device(args.device)
    qparams, attention = args.qparams or [], [args.out_attention] if args.qparams else []
    source = open_source(args.kind, args.source)
    with Stage(
        "evaluate",
        inputs=[args.graph, args.fusion, args.info, args.manifest, *source.files, *qparams],
        outputs=[args.out, *attention],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        data, *kind = evaluated_images(args, source, args.batch_size)
        model = load_model(args.graph, device, args.qparams)
        if args.qparams:
            spec = attention_spec(args.fusion, args.block)
            result = evaluate_quantized(model, data, spec, *kind)
            result.attention.to_csv(stage.temporary(args.out_attention), index=False, float_format="%.8g")
        else:
            result = evaluate_float(model, data, *kind)
        write_json(stage.temporary(args.out), result.metrics)


if __name__ == "__main__":
    run(main)
