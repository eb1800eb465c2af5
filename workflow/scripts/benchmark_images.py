"""Stage benchmark_images: the evaluation images as one file, which needs no decoder and no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, open_source, read_manifest, spread, write_images
from ptq2themoon.stage import Stage, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True, help="arrays, folder, csv or torchvision")
    parser.add_argument("--source", type=Path, required=True, help="file, folder or NAME:SPLIT:ROOT")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--manifest", type=Path, required=True, help="evaluation.csv")
    parser.add_argument("--images", type=int, required=True, help="at most so many, spread over the list")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    source = open_source(args.kind, args.source)
    with Stage(
        "benchmark_images",
        inputs=[args.info, args.manifest, *source.files],
        outputs=[args.out],
        parameters={"kind": args.kind, "source": args.source.as_posix(), "images": args.images},
    ) as stage:
        preprocessing = Preprocessing.read(args.info)
        rows = read_manifest(args.manifest)
        rows = spread(rows, min(args.images, len(rows)), "--images", args.manifest)
        found = (
            (source.pixels(row.source, preprocessing), row.label, place) for place, row in enumerate(rows)
        )
        write_images(stage.temporary(args.out), found, [len(rows), *preprocessing.input_size], {})


if __name__ == "__main__":
    run(main)
