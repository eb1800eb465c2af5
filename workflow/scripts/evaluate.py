"""Stage evaluate: a quantized model's accuracy where there is any, and its error against the reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.arguments import add_model_and_images, evaluated_images, open_model
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.outputs import Reference, reference_of, save_simulated, simulation_of
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary import records


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_and_images(parser, floating_point=False)
    parser.add_argument("--reference", type=Path, required=True, help="reference.safetensors")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is compared")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json")
    parser.add_argument("--out-attention", type=Path, required=True, help="attention.csv")
    parser.add_argument("--out-simulated", type=Path, required=True, help="simulated.safetensors")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    files = (*fused_files(args.model), args.manifest, *args.qparams, args.reference)
    with Stage(
        "evaluate",
        inputs=[*files, *source.files],
        outputs=[args.out, args.out_attention, args.out_simulated],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "batch_size": args.batch_size,
            "block": args.block,
        },
        device=device,
    ) as stage:
        fused = open_model(args)
        data, *kind, _ = evaluated_images(args, fused, source, args.batch_size)
        spec = attention_spec(fused.report.attention, args.block)
        reference = Reference.load(args.reference, reference_of(fused.sha256, args.manifest, spec))
        qparams = read_qparams(*args.qparams)
        model = simulated(qparams.model(fused.graph), device, source=fused.path)
        result = evaluate_quantized(model, data, reference.batches(args.batch_size), spec, *kind)
        result.attention.to_csv(stage.temporary(args.out_attention), index=False, float_format="%.8g")
        made_from = simulation_of(args.qparams, args.manifest)
        save_simulated(stage.temporary(args.out_simulated), result.output, made_from)
        metrics = result.metrics.model_copy(update={"protocol": qparams.header.protocol})
        records.write(stage.temporary(args.out), metrics)


if __name__ == "__main__":
    run(main)
