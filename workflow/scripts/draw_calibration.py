"""Draw calibration images with a seed, stratified over the classes, resized and cropped for one model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, draw_calibration, open_source
from ptq2themoon.stage import Stage, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True, help="arrays, folder, csv or torchvision")
    parser.add_argument("--source", type=Path, required=True, help="file, folder or NAME:SPLIT:ROOT")
    parser.add_argument("--classes", help="imagenet: class folders by WordNet id or index")
    parser.add_argument("--info", type=Path, required=True, help="model.json of the model")
    parser.add_argument("--images", type=int, required=True, help="how many to draw")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, help="threads that decode; all cores by default")
    parser.add_argument("--out", type=Path, required=True, help="calibration.safetensors to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    preprocessing = Preprocessing.read(args.info)
    source = open_source(args.kind, args.source, args.classes)
    parameters = {
        "kind": args.kind,
        "source": args.source.as_posix(),
        "images": args.images,
        "seed": args.seed,
    }
    if args.classes:
        parameters["classes"] = args.classes
    parameters |= source.identity()
    with Stage(
        "draw_calibration",
        inputs=[args.info, *source.files],
        outputs=[args.out],
        parameters=parameters,
        seed=args.seed,
    ) as stage:
        temporary = stage.temporary(args.out)
        report = draw_calibration(source, preprocessing, args.images, args.seed, temporary, args.threads)
    print(f"{args.out}: {report}")


if __name__ == "__main__":
    run(main)
