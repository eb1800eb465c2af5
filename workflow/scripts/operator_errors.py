"""Stage operator_errors: the error of every quantized operator, three ways; how stable their ranking is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ptq2themoon.data import Preprocessing, batches, open_source, read_info, read_manifest, spread
from ptq2themoon.device import resolve_device
from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.arguments import add_model_and_images
from ptq2themoon.evaluate.errors import FIGURES
from ptq2themoon.evaluate.operators import (
    error_table,
    logits_errors,
    output_errors,
    ranking,
)
from ptq2themoon.graph.files import check_same_model
from ptq2themoon.graph.report import read_operators
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_and_images(parser, floating_point=False)
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
        inputs=[args.graph, args.fusion, args.info, args.manifest, *source.files, *args.qparams],
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
        manifest = read_manifest(args.manifest)
        rows = {
            "--images": spread(manifest, args.images, "--images", args.manifest),
            "--logits-images": spread(manifest, args.logits_images, "--logits-images", args.manifest),
        }
        preprocessing = Preprocessing.from_info(read_info(args.info), args.info)
        check_same_model(args.graph, args.fusion, args.info, preprocessing.input_size, args.qparams)

        def images(option: str) -> Iterator[Tensor]:
            return (x for x, _ in batches(rows[option], source, preprocessing, args.batch_size))

        model = load_model(args.graph, device, args.qparams)
        accumulated, local = output_errors(model, images("--images"))
        logits = logits_errors(model, images("--logits-images"))
        places = pd.DataFrame([o._asdict() for o in read_operators(args.fusion)])
        places = places.rename(columns={"name": "operator"}).astype({"block": "Int64"})
        modes = {"accumulated": accumulated, "local": local, "logits": logits}
        table = pd.concat([error_table(meters, mode, places) for mode, meters in modes.items()])
        refuse_nonsense(table, args.graph)
        table.to_csv(stage.temporary(args.out), index=False, float_format="%.8g")
        write_json(stage.temporary(args.out_ranking), ranking(logits))


def refuse_nonsense(table: pd.DataFrame, graph: Path) -> None:
    """The error of a value that is no number is none either."""
    for row in table[~np.isfinite(table[list(FIGURES)]).all(axis=1)].itertuples():
        raise UserError(f"{graph}: operator {row.operator!r}: its {row.mode} error is not finite")


if __name__ == "__main__":
    run(main)
