"""Stage benchmark_weights: random weights of an architecture, and noise for images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.benchmark.random_models import random_images, random_weights
from ptq2themoon.stage import Stage, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", required=True, help="a timm model")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="weights.safetensors")
    parser.add_argument("--out-images", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with Stage(
        "benchmark_weights",
        inputs=[],
        outputs=[args.out, args.out_images],
        parameters={"architecture": args.architecture, "images": args.images},
        seed=args.seed,
    ) as stage:
        shape = random_weights(args.architecture, args.seed, stage.temporary(args.out))
        random_images(args.images, shape, args.seed, stage.temporary(args.out_images))


if __name__ == "__main__":
    run(main)
