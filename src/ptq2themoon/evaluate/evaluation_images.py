"""The evaluation images that a manifest lists, and what can be measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ptq2themoon.data import (
    Batches,
    Preprocessing,
    Source,
    batches,
    read_manifest,
    spread,
)
from ptq2themoon.evaluate.accuracy import are_labelled
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.model_info import ModelInfo


class Evaluated(NamedTuple):
    """The evaluation images in batches, and whether accuracy can be measured on them.

    Attributes:
        classifier: whether the outputs are logits.
        labelled: whether every image has a label.
        indices: the row of each image in the manifest, from 0.
    """

    batches: Batches
    classifier: bool
    labelled: bool
    indices: Sequence[int]

    def labels(self) -> Iterator[Tensor]:
        """Of each batch [B], without reading an image."""
        labels = torch.tensor([row.label for row in self.batches.rows], dtype=torch.int64)
        return iter(labels.split(self.batches.batch_size))


def shard_places(images: int, batch_size: int, shard: str) -> range:
    """Places in the manifest of the images of a shard: whole batches.

    The last bits of an output depend on the batch that it is computed in, so a shard must not cut one.

    Args:
        shard: the second of three is `2-of-3`.
    """
    number, _, count = (word if word.isdecimal() else "0" for word in shard.partition("-of-"))
    if not 1 <= int(number) <= int(count):
        raise UserError(f"--shard {shard}: must read as 2-of-3 does, the second of three")
    batches = -(-images // batch_size)
    start, stop = (batches * place // int(count) * batch_size for place in (int(number) - 1, int(number)))
    return range(min(start, images), min(stop, images))


def evaluated_images(
    manifest: Path,
    info: ModelInfo,
    source: Source,
    batch_size: int,
    most: int | None = None,
    shard: str | None = None,
) -> Evaluated:
    """The images of a manifest, checked against the model.

    Args:
        most: so many images at most, spread over the manifest; None: all.
        shard: of all of them, those of one shard, as `shard_places` shares them out.

    Raises:
        UserError: labels that the model does not know, or some images with and some without.
    """
    classes = info.num_classes
    rows = read_manifest(manifest)
    classifier, labelled = classes is not None, are_labelled([row.label for row in rows], manifest)
    if classifier and labelled:
        rows = read_manifest(manifest, classes)  # holds each label against the classes
    indices: Sequence[int] = range(len(rows))
    if most is not None and most < len(rows):
        indices = spread(indices, most, "--images", manifest)
    if shard is not None:
        at_least(1, batch_size, "batch size")
        indices = shard_places(len(rows), batch_size, shard)
    found = batches([rows[index] for index in indices], source, Preprocessing.of(info), batch_size)
    return Evaluated(found, classifier, labelled, indices)
