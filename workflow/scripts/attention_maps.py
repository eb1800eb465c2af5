"""Stage attention_maps: attention of a few images, from the graph that was evaluated."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from ptq2themoon.data import (
    FolderSource,
    Preprocessing,
    Row,
    open_source,
    read_info,
    read_manifest,
    spread,
)
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_model_and_images
from ptq2themoon.evaluate.attention import attention_spec, run_with_attention, save_maps
from ptq2themoon.graph.files import check_same_model
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="name for the figure; fp32 for floating point")
    add_model_and_images(parser, floating_point=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def of_many_classes(manifest: list[Row], count: int, path: Path) -> list[Row]:
    """`count` rows, no class twice before every class was there once; without labels at equal distances."""
    if all(row.label < 0 for row in manifest):
        return spread(manifest, count, "--images", path)
    seen: Counter[int] = Counter()
    rounds: list[tuple[int, int, Row]] = []
    for row in manifest:
        rounds.append((seen[row.label], row.label, row))
        seen[row.label] += 1
    first = [row for *_, row in sorted(rounds)][: max(count, len(seen))]
    return spread(first, count, "--images", path)


def main() -> None:
    args = parse_args()
    device = resolve_device(args.device)
    source = open_source(args.kind, args.source)
    with Stage(
        "attention_maps",
        inputs=[args.graph, args.fusion, args.info, args.manifest, *source.files, *(args.qparams or [])],
        outputs=[args.out],
        parameters={
            "recipe": args.recipe,
            "kind": args.kind,
            "source": str(args.source),
            "images": args.images,
            "block": args.block,
        },
        device=device,
    ) as stage:
        spec = attention_spec(args.fusion, args.block)
        rows = of_many_classes(read_manifest(args.manifest), args.images, args.manifest)
        preprocessing = Preprocessing.from_info(read_info(args.info), args.info)
        check_same_model(args.graph, args.fusion, args.info, preprocessing.input_size, args.qparams)
        pixels = torch.stack([source.pixels(row.source, preprocessing) for row in rows])
        model = load_model(args.graph, device, args.qparams)
        _, attention = run_with_attention(model, preprocessing.normalise(pixels), spec)
        labels = [row.label for row in rows]
        names = [source.class_name(row.source) for row in rows] if isinstance(source, FolderSource) else []
        save_maps(stage.temporary(args.out), pixels, attention, spec, args.recipe, labels, names)


if __name__ == "__main__":
    run(main)
