"""Stage fuse: model.onnx to fused.onnx and fusion.json, logits checked on real images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.graph.editing.onnx_run import TOLERANCE, run_onnx
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.fusion_record import fusion_report
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError, at_least


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--images", type=Path, required=True, help="calibration images for the check")
    parser.add_argument("--check-images", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-report", type=Path, required=True)
    return parser.parse_args()


def check_logits(original: onnx.ModelProto, fused: onnx.ModelProto, images: np.ndarray) -> float:
    """Largest difference of a logit between the two graphs in ONNX Runtime."""
    expected = run_onnx(original, images, at_once=1)  # no image may change another's logits
    if not np.isfinite(expected).all():
        raise UserError("the model gives logits that are not finite on the calibration images")
    difference = float(np.abs(run_onnx(fused, images) - expected).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the fused graph's logits differ by {difference:.2g} (> {TOLERANCE}); nothing is written"
        )
    return difference


def main() -> None:
    args = parse_args()
    at_least(1, args.check_images, "--check-images")
    with Stage(
        "fuse",
        inputs=[args.model, args.info, args.images],
        outputs=[args.out, args.out_report],
        parameters={"check_images": args.check_images},
    ) as stage:
        preprocessing = Preprocessing.read(args.info)
        images = next(iter(calibration_batches(args.images, preprocessing, args.check_images))).numpy()
        original = read_graph(args.model)
        try:
            fused, fusions = fuse(normalise(original))
        except UserError as error:
            raise UserError(f"{args.model}: {error}") from None
        operators, renamed = rename_operators(fused, find_roles(fused))
        if not any(operator.role == "softmax" for operator in operators):
            raise UserError(
                f"{args.model}: no transformer: no Softmax between two products of activations was found; "
                "give a Vision Transformer whose attention is plain operators"
            )
        difference = check_logits(original, fused, images)
        report = fusion_report(original, fused, fusions, operators, renamed, len(images), difference)
        onnx.save(fused, stage.temporary(args.out))
        records.write(stage.temporary(args.out_report), report)


if __name__ == "__main__":
    run(main)
