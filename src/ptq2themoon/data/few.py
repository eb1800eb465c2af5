"""A few images of an evaluation, for figures: of many classes, and with what a figure says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptq2themoon.data.image_files import Row, spread
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.sources import FolderSource, Source


@dataclass(frozen=True)
class FewImages:
    """Images as they are drawn and as the model wants them.

    Attributes:
        pixels: uint8 [N, C, H, W].
        normalised: float32 [N, C, H, W].
        labels: class index of each, -1 where unknown.
        names: of each image's class as the data set has it; none where it has none.
    """

    pixels: Tensor
    normalised: Tensor
    labels: tuple[int, ...]
    names: tuple[str, ...]


def few_images(
    source: Source, manifest: Sequence[Row], count: int, path: Path, preprocessing: Preprocessing
) -> FewImages:
    """`count` images of the manifest at `path`, chosen by `of_many_classes`."""
    rows = of_many_classes(manifest, count, path)
    pixels = torch.stack([source.pixels(row.source, preprocessing) for row in rows])
    labels = tuple(row.label for row in rows)
    names = tuple(source.class_name(row.source) for row in rows) if isinstance(source, FolderSource) else ()
    return FewImages(pixels, preprocessing.normalise(pixels), labels, names)


def of_many_classes(manifest: Sequence[Row], count: int, path: Path) -> list[Row]:
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
