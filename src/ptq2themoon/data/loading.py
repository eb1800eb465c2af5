"""Batches for the models: decoded in threads, in order, two batches in memory at most."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ptq2themoon.data.image_files import Row
from ptq2themoon.data.images import UnreadableImage
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.sources import ArraySource, Source
from ptq2themoon.vocabulary.errors import UserError, at_least

A = TypeVar("A")
B = TypeVar("B")


def thread_count(asked: int | None) -> int:
    """`asked`, or as many as the process may use cores; no more than it computes with (OMP_NUM_THREADS)."""
    if asked is not None:
        if asked < 1:
            raise UserError(f"{asked} threads asked for; at least 1 expected")
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, torch.get_num_threads())


def ordered_map(function: Callable[[A], B], items: Iterable[A], threads: int, window: int) -> Iterator[B]:
    """`function` over `items` in a thread pool, results in order, at most `window` of them waiting."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Batches:
    """(float32 [B, C, H, W] normalised, int64 [B]) per batch, the last one smaller; can be iterated again."""

    def __init__(
        self, rows: Sequence[Row], source: Source, preprocessing: Preprocessing, batch_size: int, threads: int
    ) -> None:
        self.rows, self.source, self.preprocessing = rows, source, preprocessing
        self.batch_size, self.threads = batch_size, threads

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def _pixels(self, row: Row) -> Tensor:
        try:
            return self.source.pixels(row.source, self.preprocessing)
        except UnreadableImage as error:
            hint = "it could be read when the manifest was written"
            raise UserError(f"{self.source.path}: {error}; {hint}") from error

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # While the model works on one batch, the pool decodes the next.
        images = ordered_map(self._pixels, self.rows, self.threads, 2 * self.batch_size)
        for start in range(0, len(self.rows), self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            pixels = torch.stack([next(images) for _ in rows])
            yield self.preprocessing.normalise(pixels), torch.tensor([row.label for row in rows])


def batches(
    rows: Sequence[Row],
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int | None = None,
) -> Batches:
    """The images of a manifest; `threads` decode them (all cores of the process by default)."""
    at_least(1, batch_size, "batch size")
    return Batches(rows, source, preprocessing, batch_size, thread_count(threads))


class CalibrationBatches:
    """float32 [B, C, H, W] normalised, per batch; each read from the file when it is its turn."""

    def __init__(self, source: ArraySource, preprocessing: Preprocessing, batch_size: int) -> None:
        self.source, self.preprocessing, self.batch_size = source, preprocessing, batch_size
        self.images = source.shape[0]

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.images, self.batch_size):
            stop = min(start + self.batch_size, self.images)
            yield self.preprocessing.normalise(self.source.rows(start, stop))


def calibration_batches(path: Path, preprocessing: Preprocessing, batch_size: int) -> CalibrationBatches:
    """The images of a drawn calibration set, in the order of the draw."""
    at_least(1, batch_size, "batch size")
    source = ArraySource(path)
    size = list(preprocessing.input_size)
    if source.shape[1:] != size:
        raise UserError(
            f"{path}: images of {source.shape[1:]}, but the model takes {size}; draw them for this model"
        )
    return CalibrationBatches(source, preprocessing, batch_size)
