"""Stage benchmark_ppq: PPQ's own INT8 file for ONNX Runtime, of the same model and images.

Where PPQ fails the file is empty: the others are compared all the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.benchmark.ppq_export import export
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.onnx")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--images", type=Path, required=True, help="calibration images")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with Stage(
        "benchmark_ppq",
        inputs=[args.model, args.info, args.images],
        outputs=[args.out],
        parameters={},
        device="cpu",
    ) as stage:
        preprocessing = Preprocessing.read(args.info)
        batches = list(calibration_batches(args.images, preprocessing, 1))
        try:
            export(args.model, batches, stage.temporary(args.out))
        except UserError as error:
            print(error)
            stage.temporary(args.out).write_bytes(b"")


if __name__ == "__main__":
    run(main)
