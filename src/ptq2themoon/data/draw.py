"""Which images: a seeded draw, stratified over the classes.

One seed gives one order of the whole source, and a draw of n is its first n: a larger draw contains
every smaller one. The order spreads each class evenly. Within a class images are shuffled; the r-th
(from 0) of a class of m images stands at (r + 1/2) / m, and images are sorted by that, ties shuffled.
So each prefix shares its places out in proportion to class size (Sainte-Laguë): classes of equal size
differ by at most one image, and which of them get the one more is drawn too. Without labels the whole
source is one class and the draw uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from ptq2themoon.data.image_files import Row, write_images
from ptq2themoon.data.images import UnreadableImage
from ptq2themoon.data.loading import ordered_map, thread_count
from ptq2themoon.data.opening import check_classes
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.sources import FolderSource, Source
from ptq2themoon.progress import progress, warn
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.image_folders import summary

T = TypeVar("T")

MAX_UNREADABLE = 0.01  # of the images asked for
FEWER = "ask for fewer (`images` in the parameters) or add images"
EVALUATION_SEED = 0  # every model and recipe is measured on the same images


@dataclass
class Report:
    """What a draw found: images available, files passed over, images taken, a line for each broken one."""

    available: int
    passed_over: int = 0
    taken: int = 0
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source) -> Report:
        """Nothing taken yet; warns of what a folder holds besides images, and of classes without any."""
        if not isinstance(source, FolderSource):
            return cls(len(source.keys))
        if source.empty_classes:
            names = ", ".join(source.empty_classes[:5]) + (", ..." if source.empty_classes[5:] else "")
            warn(f"{source.path}: no images in class folder {names}; labels count it all the same")
        if source.passed_over:
            warn(f"{source.path}: {len(source.passed_over)} files passed over: {summary(source.passed_over)}")
        return cls(len(source.keys), len(source.passed_over))

    def __str__(self) -> str:
        other = f", {self.passed_over} files of other kinds passed over" if self.passed_over else ""
        return f"{self.taken} of {self.available} images, {len(self.unreadable)} unreadable{other}"


def draw_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of all images in the order of the draw (see the module)."""
    if seed < 0:
        raise UserError(f"seed {seed}: a whole number from 0 on expected")
    noise = np.random.default_rng(seed).random((2, len(labels)))
    shuffled = np.lexsort((noise[0], labels))
    _, first, size = np.unique(labels[shuffled], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, size)
    place = (rank + 0.5) / np.repeat(size, size)
    return shuffled[np.lexsort((noise[1], place))]


def _readable(
    source: Source, order: np.ndarray, wanted: int, read: Callable[[str], T], threads: int, report: Report
) -> Iterator[tuple[int, T]]:
    """The first `wanted` images of `order` that can be read; the next in order replaces a broken one."""

    def attempt(index: int) -> tuple[int, T | UnreadableImage]:
        try:
            return index, read(source.keys[index])
        except UnreadableImage as error:
            return index, error

    for index, value in ordered_map(attempt, order.tolist(), threads, window=4 * threads):
        if isinstance(value, UnreadableImage):
            _note(value, source, wanted, report)
            continue
        report.taken += 1
        yield index, value
        if report.taken == wanted:
            return


def _note(broken: UnreadableImage, source: Source, wanted: int, report: Report) -> None:
    report.unreadable.append(str(broken))
    warn(f"{source.path}: {broken}")
    count = len(report.unreadable)
    if count > MAX_UNREADABLE * wanted:
        limit = f"more than {MAX_UNREADABLE:.0%} of {wanted}"
        raise UserError(
            f"{source.path}: {count} images can't be read ({limit}); first {report.unreadable[0]}"
        )


def _check_number(source: Source, wanted: int) -> None:
    if wanted < 1:
        raise UserError(f"{wanted} images of {source.path} asked for; at least 1 expected")
    if wanted > len(source.keys):
        raise UserError(f"{source.path}: {len(source.keys)} images, but {wanted} are asked for; {FEWER}")


def draw_calibration(
    source: Source,
    preprocessing: Preprocessing,
    images: int,
    seed: int,
    out: Path,
    threads: int | None = None,
) -> Report:
    """Draw exactly `images` images and write them, resized and cropped, in the order of the draw."""
    _check_number(source, images)
    threads, report = thread_count(threads), Report.of(source)
    order = draw_order(source.labels, seed)

    def read(key: str) -> Tensor:
        return source.pixels(key, preprocessing)

    found = _readable(source, order, images, read, threads, report)
    shown = progress(_all_of(found, source, images, report), images, "drawing calibration images")
    rows = ((pixels, int(source.labels[index]), index) for index, pixels in shown)
    strata = len(np.unique(source.labels))
    metadata = {
        "draw": f"stratified over {strata} classes" if strata > 1 else "uniform",
        "seed": str(seed),
        **({"classes": str(source.classes)} if source.classes else {}),
    }
    write_images(out, rows, [images, *preprocessing.input_size], metadata)
    return report


def list_evaluation(
    source: Source,
    num_classes: int | None,
    images: int | None,
    threads: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> tuple[list[Row], Report]:
    """The images to evaluate on (None: all), each decoded once, in the order of the source.

    With `preprocessing`, those that it could not bring to the model's size are left out too. A model without
    classes (`num_classes` None) needs no labels: where unknown they are -1.
    """
    wanted = len(source.keys) if images is None else images
    _check_number(source, wanted)
    check_classes(source, num_classes)
    threads, report = thread_count(threads), Report.of(source)
    order = draw_order(source.labels, EVALUATION_SEED) if images is not None else np.arange(wanted)

    def read(key: str) -> None:
        source.check(key, preprocessing)

    found = _readable(source, order, wanted, read, threads, report)
    if images is not None:
        found = _all_of(found, source, wanted, report)
    chosen = sorted(index for index, _ in progress(found, wanted, "checking evaluation images"))
    return [Row(source.keys[index], int(source.labels[index])) for index in chosen], report


def _all_of(found: Iterator[T], source: Source, wanted: int, report: Report) -> Iterator[T]:
    yield from found
    if report.taken < wanted:
        raise UserError(f"{source.path}: {report.taken} readable images, but {wanted} are asked for; {FEWER}")
