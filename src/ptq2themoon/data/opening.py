"""From a data set's kind and place in the parameters to a source, and whether its labels are the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ptq2themoon.data.csv_source import CsvSource
from ptq2themoon.data.sources import ArraySource, FolderSource, Source
from ptq2themoon.data.torchvision_source import TorchvisionSource
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.image_folders import ClassOrder

KINDS: dict[str, Callable[[Path], Source]] = {
    "arrays": ArraySource,
    "folder": FolderSource,
    "csv": CsvSource,
    "torchvision": TorchvisionSource,
}


def open_source(
    kind: str, path: Path, classes: str | None = None, class_order: ClassOrder | None = None
) -> Source:
    """Open a source; `classes` is how a folder's names become labels, None for their places in `class_order`.

    Only labels depend on these two: what merely reads the images of a manifest need not know them.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} of {path} is unknown; {nearest(kind, KINDS)}")
    if classes is None and class_order is None:
        return KINDS[kind](path)
    if kind != "folder":
        said = f"classes {classes!r}" if classes else f"class_order {class_order!r}"
        raise UserError(f"{path}: {said} is for kind folder, not {kind}; leave it out")
    return FolderSource(path, classes, class_order)


def check_classes(source: Source, num_classes: int | None) -> None:
    """Refuse to measure accuracy with labels that can't be the model's; without classes all will do.

    Where no image has a label there is no accuracy to measure.
    """
    if num_classes is None:
        return
    unknown = int((source.labels < 0).sum())
    if unknown == len(source.labels):
        warn(f"{source.path}: no labels, so no accuracy; class folders or a column 'label' would give them")
        return
    if unknown:
        raise UserError(f"{source.path}: {unknown} images have no label; give all of them one, or none")
    if isinstance(source, FolderSource):
        source.check_order()
    found = max(source.classes or 0, int(source.labels.max()) + 1)
    if num_classes == 1 and found > 1:
        raise UserError(
            f"{source.path}: {found} classes, but the model gives one logit, as for yes or no; "
            "say `classifier: false` of the model, or export it with a logit for each class"
        )
    if found > num_classes or (source.classes and source.classes != num_classes):
        raise UserError(
            f"{source.path}: {found} classes, but the model tells {num_classes} apart (num_classes); "
            f"{_advice(source, num_classes)}"
        )


def _advice(source: Source, num_classes: int) -> str:
    if isinstance(source, FolderSource) and source.naming is None and num_classes == 1000:
        return "for class folders named as in ImageNet say `classes: imagenet`"
    return "give images of the classes that the model was trained on"
