"""The evaluation images that a manifest lists, and what can be measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ptq2themoon.data import (
    Batches,
    Preprocessing,
    Source,
    batches,
    read_manifest,
    spread,
)
from ptq2themoon.evaluate.accuracy import are_labelled
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


def evaluated_images(
    manifest: Path, info: ModelInfo, source: Source, batch_size: int, most: int | None = None
) -> Evaluated:
    """The images of a manifest, checked against the model.

    Args:
        most: so many images at most, spread over the manifest; None: all.

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
    found = batches([rows[index] for index in indices], source, Preprocessing.of(info), batch_size)
    return Evaluated(found, classifier, labelled, indices)
