"""List the images that a model is evaluated on, each decoded once to see that it can be."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import (
    list_evaluation,
    open_source,
    write_manifest,
)
from ptq2themoon.data.draw import EVALUATION_SEED
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.records import read


def number_or_all(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError(f"--images: {text!r} is neither a number nor 'all'")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True, help="arrays, folder, csv or torchvision")
    parser.add_argument("--source", type=Path, required=True, help="file, folder or NAME:SPLIT:ROOT")
    parser.add_argument("--classes", help="imagenet: class folders by WordNet id or index")
    parser.add_argument("--info", type=Path, required=True, help="model.json of the model")
    parser.add_argument("--images", type=number_or_all, required=True, help="a number, or all")
    parser.add_argument("--threads", type=int, help="threads that decode; all cores by default")
    parser.add_argument("--out", type=Path, required=True, help="evaluation.csv to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    num_classes = read(args.info, ModelInfo).num_classes
    source = open_source(args.kind, args.source, args.classes)
    parameters = {"kind": args.kind, "source": args.source.as_posix(), "images": args.images}
    if args.classes:
        parameters["classes"] = args.classes
    parameters |= source.identity()
    with Stage(
        "list_evaluation",
        inputs=[args.info, *source.files],
        outputs=[args.out],
        parameters=parameters,
        seed=EVALUATION_SEED,
    ) as stage:
        rows, report = list_evaluation(source, num_classes, args.images, args.threads)
        write_manifest(stage.temporary(args.out), rows)
    print(f"{args.out}: {report}")


if __name__ == "__main__":
    run(main)
