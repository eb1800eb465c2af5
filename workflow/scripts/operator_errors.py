"""Stage operator_errors: the error of every quantized operator, three ways; how stable their ranking is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ptq2themoon.data import Preprocessing, batches, open_source, read_manifest, spread
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_model_and_images, open_model
from ptq2themoon.evaluate.error_meter import FIGURES
from ptq2themoon.evaluate.operator_errors import (
    error_table,
    logits_errors,
    output_errors,
    ranking,
)
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_and_images(parser, floating_point=False)
    parser.add_argument("--reference", type=Path, required=True, help="reference.safetensors")
    parser.add_argument("--images", type=int, required=True, help="for the errors of the outputs")
    parser.add_argument("--logits-images", type=int, required=True, help="for the effect on the logits")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="operators.csv")
    parser.add_argument("--out-ranking", type=Path, required=True, help="ranking.json")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    with Stage(
        "operator_errors",
        inputs=[*fused_files(args.model), args.manifest, *source.files, *args.qparams, args.reference],
        outputs=[args.out, args.out_ranking],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
            "logits_images": args.logits_images,
            "batch_size": args.batch_size,
        },
        device=device,
    ) as stage:
        fused, manifest = open_model(args), read_manifest(args.manifest)
        everywhere = range(len(manifest))
        places = {
            "--images": spread(everywhere, args.images, "--images", args.manifest),
            "--logits-images": spread(everywhere, args.logits_images, "--logits-images", args.manifest),
        }
        preprocessing = Preprocessing.of(fused.info)

        def images(option: str) -> Iterator[Tensor]:
            rows = [manifest[place] for place in places[option]]
            return (x for x, _ in batches(rows, source, preprocessing, args.batch_size))

        whole = Reference.load(args.reference, reference_of(fused.sha256, args.manifest))
        known = whole.at(places["--logits-images"]).batches(args.batch_size)
        quantized = read_qparams(*args.qparams).model(fused.graph)
        model = simulated(quantized, device, source=fused.path)
        floating = SimulatedModel(quantized.rewritten, device, source=fused.path)
        accumulated, local = output_errors(model, floating, images("--images"))
        logits = logits_errors(model, floating, images("--logits-images"), [output for output, _ in known])
        operators = pd.DataFrame([operator._asdict() for operator in quantized.operators])
        operators = operators.rename(columns={"name": "operator"}).astype({"block": "Int64"})
        modes = {"accumulated": accumulated, "local": local, "logits": logits}
        table = pd.concat([error_table(meters, mode, operators) for mode, meters in modes.items()])
        refuse_nonsense(table, fused.path)
        table.to_csv(stage.temporary(args.out), index=False, float_format="%.8g")
        write_json(stage.temporary(args.out_ranking), ranking(logits))


def refuse_nonsense(table: pd.DataFrame, graph: Path) -> None:
    """The error of a value that is no number is none either."""
    for row in table[~np.isfinite(table[list(FIGURES)]).all(axis=1)].itertuples():
        raise UserError(f"{graph}: operator {row.operator!r}: its {row.mode} error is not finite")


if __name__ == "__main__":
    run(main)
