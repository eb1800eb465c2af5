"""All models of one comparison: opened, timed by turns, and held against FP32 and the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ptq2themoon.benchmark import runtimes
from ptq2themoon.benchmark.peers import size
from ptq2themoon.benchmark.timing import interleaved, quartiles, ratios
from ptq2themoon.evaluate import metrics
from ptq2themoon.graph.editing.onnx_run import Runner, product_kernels, runner, session

BASE = "FP32, ONNX Runtime"
LATENCY = (
    *("model", "batch", "threads", "rounds", "tool", "variant", "runtime", "precision"),
    *("median_ms", "low_ms", "high_ms", "ratio", "ratio_low", "ratio_high", "kernels"),
)
PEERS = (
    *("model", "tool", "variant", "runtime", "precision", "bytes", "size_ratio"),
    *("images", "top1", "agreement", "sqnr_db", "problem"),
)
OPERATORS = ("model", "variant", "batch", "threads", "operator", "count", "ms", "share")


@dataclass(frozen=True)
class Entry:
    """One model file in one runtime.

    Attributes:
        precision: of what is not quantized.
    """

    tool: str
    variant: str
    path: Path
    runtime: str = "ONNX Runtime"
    precision: runtimes.Precision = "f32"
    quantized: bool = True

    @property
    def name(self) -> str:
        """The entry's name in tables: its variant, its runtime and, unless it is f32, its precision."""
        shown = self.runtime if self.precision == "f32" else f"{self.runtime} {self.precision}"
        return f"{self.variant}, {shown}"

    def facts(self) -> dict[str, str]:
        """Columns that tell the entry apart in tables, by name."""
        keys = ("tool", "variant", "runtime", "precision")
        return {key: str(getattr(self, key)) for key in keys}


@dataclass
class Arena:
    """Entries of one model, `BASE` among them.

    Attributes:
        folder: for files that runtimes write.
        problems: what a runtime said of each entry that it refused.
    """

    model: str
    entries: Sequence[Entry]
    threads: int
    folder: Path
    problems: dict[str, str] = field(default_factory=dict)

    def open(self, shape: tuple[int, ...]) -> Iterator[tuple[Entry, Runner, Mapping[str, int]]]:
        """Every entry that runs images of a shape [B, C, H, W], and the kernels that it runs on."""
        for entry in self.entries:
            try:
                yield entry, *self._open(entry, shape)
            except Exception as error:  # a runtime's own have no common ancestor
                if entry.name == BASE:
                    raise
                self.problems[entry.name] = " ".join(str(error).split())[:200]

    def _open(self, entry: Entry, shape: tuple[int, ...]) -> tuple[Runner, Mapping[str, int]]:
        if entry.runtime == "OpenVINO":
            openvino = runtimes.OpenVino(self.threads)
            compiled = openvino.compile(entry.path, shape, entry.precision)
            run = runtimes.openvino_runner(compiled)
            kernels = runtimes.openvino_kernels(compiled, openvino.products(entry.path))
        else:
            run = runner(session(entry.path, threads=self.threads, quantized=entry.quantized))
            kernels = product_kernels(entry.path, self.folder, quantized=entry.quantized)
        run(np.zeros(shape, np.float32))
        return run, kernels

    def latency(self, images: np.ndarray, rounds: int) -> list[dict[str, Any]]:
        """A row for each entry: milliseconds per batch, and how many times faster than the base.

        Args:
            images: float32 [B, C, H, W].
        """
        opened = list(self.open(images.shape))
        work = {entry.name: partial(run, images) for entry, run, _ in opened}
        times = interleaved(work, rounds, BASE)
        faster = ratios(times, BASE)
        rows = []
        for entry, _, kernels in opened:
            found = [f"{1000 * value:.3f}" for value in quartiles(times[entry.name])]
            ratio = [f"{value:.3f}" for value in faster[entry.name]]
            row = {"model": self.model, "batch": len(images), "threads": self.threads, "rounds": rounds}
            row |= entry.facts() | dict(zip(("median_ms", "low_ms", "high_ms"), found, strict=True))
            row |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
            rows.append(row | {"kernels": " ".join(f"{name}={count}" for name, count in kernels.items())})
        return rows

    def accuracy(
        self, images: np.ndarray, labels: np.ndarray | None, batch: int
    ) -> dict[str, dict[str, float | None]]:
        """Of each entry, on all images, a batch at a time; the last one is filled up."""
        logits = {
            entry.name: _in_batches(run, images, batch)
            for entry, run, _ in self.open((batch, *images.shape[1:]))
        }
        return {name: fidelity(found, logits[BASE], labels) for name, found in logits.items()}

    def comparison(
        self, images: np.ndarray | None, labels: np.ndarray | None, batch: int
    ) -> list[dict[str, Any]]:
        """A row for each entry: size and, with images, accuracy; those that do not run say why."""
        accuracy = {} if images is None else self.accuracy(images, labels, batch)
        (base,) = (size(entry.path) for entry in self.entries if entry.name == BASE)
        rows = []
        for entry in self.entries:
            row: dict[str, Any] = {"model": self.model} | entry.facts()
            row |= {"bytes": size(entry.path), "size_ratio": f"{size(entry.path) / base:.3f}"}
            row |= {"images": None if images is None else len(images), **accuracy.get(entry.name, {})}
            rows.append(row | {"problem": self.problems.get(entry.name)})
        return rows

    def operators(self, images: np.ndarray, runs: int) -> list[dict[str, Any]]:
        """Rows of `runtimes.operator_shares` for every entry of ONNX Runtime that runs."""
        rows = []
        facts = {"model": self.model, "batch": len(images), "threads": self.threads}
        for entry in self.entries:
            if entry.runtime != "OpenVINO" and entry.name not in self.problems:
                found = runtimes.operator_shares(
                    entry.path, self.threads, images, runs, self.folder, quantized=entry.quantized
                )
                rows += [{**facts, "variant": entry.variant, **row} for row in found]
        return rows


def _in_batches(run: Runner, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits [N, classes] of images [N, C, H, W]."""
    found = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        filled = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
        found.append(np.array(run(filled)[: len(part)]))
    return np.concatenate(found)


def fidelity(found: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> dict[str, float | None]:
    """Top-1 and agreement in percent, SQNR in dB, rounded for the table.

    Args:
        found, reference: logits [N, classes] of a model and of FP32.
        labels: [N]; None where there are none.
    """
    sqnr = metrics.output_sqnr_db(found, reference)
    return {
        "top1": None if labels is None else round(metrics.top1(found, labels), 3),
        "agreement": round(metrics.agreement(found, reference), 3),
        "sqnr_db": None if sqnr is None else round(sqnr, 2),
    }
