"""Write the embedded images from the IDX files of Fashion-MNIST.

    calibration.safetensors   1,024 of the 60,000 training images
    evaluation.safetensors    2,000 of the 10,000 test images, 200 of each class

Both are seeded draws, stratified over the ten classes, in the order of the IDX files; `index` holds
each image's place there. The same files, seed and count give the same bytes.

    python resources/demo/make_images.py --data /usr/share/datasets/fashion-mnist --out resources/demo
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from ptq2themoon.data import draw_order, write_images
from ptq2themoon.data.idx import read_idx
from ptq2themoon.stage import run
from ptq2themoon.vocabulary.errors import UserError

# name: prefix of the IDX files, images in them, images to draw
SETS = {"calibration": ("train", 60_000, 1_024), "evaluation": ("t10k", 10_000, 2_000)}
CLASSES = 10


def write_set(name: str, data: Path, out: Path, seed: int) -> Path:
    """Draw one set and write it."""
    prefix, available, count = SETS[name]
    images = read_idx(data, f"{prefix}-images-idx3-ubyte")
    labels = read_idx(data, f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    if images.shape != (available, 28, 28) or labels.shape != (available,):
        raise UserError(
            f"{data}: {prefix}: {images.shape} images and {labels.shape} labels are not Fashion-MNIST's"
        )
    chosen = np.sort(draw_order(labels, seed)[:count])
    rows = ((torch.from_numpy(images[i][None]), int(labels[i]), int(i)) for i in chosen)
    metadata = {
        "source": "Fashion-MNIST (Zalando Research), https://github.com/zalandoresearch/fashion-mnist",
        "split": f"{prefix}: {count} of {available} images, drawn with equal shares of the classes",
        "license": "MIT, Copyright 2017 Zalando SE; see LICENSE-fashion-mnist.txt",
        "seed": str(seed),
        "classes": str(CLASSES),
    }
    path = out / f"{name}.safetensors"
    temporary = path.with_suffix(".tmp")
    write_images(temporary, rows, [count, 1, 28, 28], metadata)
    os.replace(temporary, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        path = write_set(name, args.data, args.out, args.seed)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
