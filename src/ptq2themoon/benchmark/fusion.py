"""What fusion saves: operators and time per image, in two executors, in floating point and quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch

from ptq2themoon.benchmark.timing import Quartiles, interleaved, quartiles, ratios, repeats
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.evaluate.metrics import output_sqnr_db
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.editing.onnx_run import TOLERANCE, Runner, kernel_counts, run_onnx, runner, session
from ptq2themoon.graph.forms.fuse import name_operators
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.fusion_record import count_types
from ptq2themoon.graph.meaning.nodes import read_nodes
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe

PPQ, RUNTIME, UNOPTIMISED = "PPQ's executor", "ONNX Runtime", "ONNX Runtime without optimisations"
EXECUTORS = (PPQ, RUNTIME, UNOPTIMISED)
FULL_PRECISION = "fp32"
WITHOUT, WITH = "without", "with"
COUNTS = ("operators", "executed", "quantized_tensors")
SETTINGS = ("batch", "threads", "rounds")
TIMES = ("median_ms", "low_ms", "high_ms")
RATIOS = ("ratio", "ratio_low", "ratio_high")
COLUMNS = (
    *("model", "executor", "precision", "fusion"),
    *(*COUNTS, *TIMES, *RATIOS, *SETTINGS, "sqnr_db", "images", "note"),
)


def without_fusion(path: Path) -> onnx.ModelProto:
    """An exported model brought to the form from which `fuse` starts: fusion alone makes the difference.

    Raises:
        UserError: a model that has no such form.
    """
    original = read_graph(path)
    try:
        graph = Graph(normalise(original))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    name_operators(graph)
    return graph.finish()


@dataclass
class Form:
    """The graph without or with fusion.

    Attributes:
        path: in floating point.
        images: float32 [N, C, H, W], normalised, to calibrate with.
    """

    fusion: str
    path: Path
    recipe: Recipe
    bits: tuple[int, int]
    images: np.ndarray

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The graph in the form's file."""
        return read_graph(self.path)

    @cached_property
    def quantized(self) -> list[QuantizedOperator]:
        """Calibrated. No roles are known, for without fusion no operator has one."""
        nodes = read_nodes(self.model)
        operators = [Operator(name, node.type) for name, node in nodes.items()]
        planned = plan(operators, nodes, self.recipe, *self.bits)
        model = SimulatedModel(self.model, "cpu", planned, source=self.path)
        calibrate(model, planned, [torch.from_numpy(self.images)])
        return planned

    def int8(self, folder: Path) -> Path:
        """The faithful INT8 model, written to `folder`."""
        path = folder / f"{self.fusion}.onnx"
        write_model(deploy(self.model, self.quantized, "faithful", source=self.path).model, path)
        return path


def same_logits(forms: Sequence[Form]) -> np.ndarray:
    """What all give in floating point for their images.

    Raises:
        UserError: they differ.
    """
    first, *others = (run_onnx(form.path, form.images) for form in forms)
    difference = max(float(np.abs(other - first).max()) for other in others)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{forms[-1].path}: its logits differ by {difference:.2g} (> {TOLERANCE}) from those without "
            "fusion; run the fuse stage again"
        )
    return first


@dataclass
class Contestant:
    """A graph in an executor.

    Attributes:
        precision: `fp32`, or bits such as `w8a8`.
        operators: of the graph that the executor is given.
        executed: of the graph that it makes of that.
        quantized_tensors: inputs, parameters and outputs of all operators.
        run: None where it can't.
        note: why it can't run, or what is wrong with what it gives.
    """

    executor: str
    precision: str
    fusion: str
    operators: int | None = None
    executed: int | None = None
    quantized_tensors: int | None = None
    run: Runner | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The contestant's key: executor, precision and fusion."""
        return f"{self.executor}, {self.precision}, {self.fusion}"

    @property
    def is_quantized(self) -> bool:
        """Whether the contestant runs in other than full precision."""
        return self.precision != FULL_PRECISION

    def open(self, form: Form, threads: int, folder: Path) -> None:
        """Make it run the form's first image.

        Args:
            folder: for files that the runtime reads and writes.
        """
        quantized = form.quantized if self.is_quantized else []
        self.quantized_tensors = sum(len(item.tensors) for item in quantized)
        if self.executor == PPQ:
            run = self._ppq(form, quantized)
        else:
            path = form.int8(folder) if self.is_quantized else form.path
            run = self._runtime(path, threads, folder / "optimised.onnx")
        run(form.images[:1])
        self.run = run

    def _ppq(self, form: Form, quantized: list[QuantizedOperator]) -> Runner:
        model = SimulatedModel(form.model, "cpu", quantized, "ppq", form.path)
        self.operators = self.executed = len(model.order)
        return lambda images: model(torch.from_numpy(images)).numpy()

    def _runtime(self, path: Path, threads: int, optimised: Path) -> Runner:
        self.operators = len(read_graph(path).graph.node)
        running = session(
            path,
            quantized=self.is_quantized,
            threads=threads,
            optimise=self.executor == RUNTIME,
            optimised=optimised,
        )
        self.executed = kernel_counts(optimised).total()
        return runner(running)

    def judge(self, images: np.ndarray, logits: np.ndarray) -> float | None:
        """Output SQNR in dB against `logits`, those in floating point; runs the images together."""
        if self.run is None or not self.is_quantized:
            return None
        found = self.run(images)
        if not np.isfinite(found).all():
            self.note = "output not finite"
            return None
        return output_sqnr_db(found, logits)


def contestants(forms: Sequence[Form], bits: str, threads: int, folder: Path) -> list[Contestant]:
    """Every form in every executor and precision; those that do not run say why."""
    found = []
    for executor, precision, form in product(EXECUTORS, (FULL_PRECISION, bits), forms):
        contestant = Contestant(executor, precision, form.fusion)
        try:
            contestant.open(form, threads, folder)
        except Exception as error:  # the executors' own have no common ancestor
            contestant.note = f"not timed: {' '.join(str(error).split())[:200]}"
        found.append(contestant)
    return found


def comparison(
    found: Sequence[Contestant], images: np.ndarray, logits: np.ndarray, rounds: int
) -> list[dict[str, Any]]:
    """A row for each: time of the first image, how many times faster with fusion, error of the output.

    Args:
        images: float32 [N, C, H, W]; the error is of all of them.
        logits: [N, ...], theirs in floating point.
    """
    one = images[:1]
    times = paced({c.name: partial(c.run, one) for c in found if c.run is not None}, rounds)
    rows = []
    for contestant in found:
        row: dict[str, Any] = {key: getattr(contestant, key) for key in ("executor", "precision", "fusion")}
        row |= {key: getattr(contestant, key) for key in COUNTS}
        if contestant.name in times:
            row |= zip(TIMES, (1000 * value for value in quartiles(times[contestant.name])), strict=True)
        row |= zip(RATIOS, _ratio(contestant, times), strict=False)
        row |= {"batch": len(one), "sqnr_db": contestant.judge(images, logits), "images": len(images)}
        rows.append(row | {"note": contestant.note})
    return rows


def _ratio(contestant: Contestant, times: Mapping[str, Sequence[float]]) -> Quartiles | tuple[()]:
    """How many times faster than without fusion, all else alike; nothing where one of the two did not run."""
    base = Contestant(contestant.executor, contestant.precision, WITHOUT).name
    if base not in times or contestant.name not in times:
        return ()
    return ratios({name: times[name] for name in (base, contestant.name)}, base)[contestant.name]


def paced(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round, by turns; what is short is repeated until it can be measured."""
    counts = {name: repeats(seconds) for name, (seconds,) in interleaved(work, 1).items()}
    repeated = {name: partial(_repeat, do, counts[name]) for name, do in work.items()}
    times = interleaved(repeated, rounds)
    return {name: [seconds / counts[name] for seconds in values] for name, values in times.items()}


def _repeat(do: Callable[[], object], count: int) -> None:
    for _ in range(count):
        do()


def operator_counts(forms: Sequence[Form]) -> pd.DataFrame:
    """Operators of each type by form, the most frequent first; columns `operator` and each fusion."""
    counts = {form.fusion: count_types(form.model) for form in forms}
    table = pd.DataFrame(counts).fillna(0).astype(int).rename_axis("operator").reset_index()
    order = [*counts, "operator"]
    return table.sort_values(order, ascending=[False] * len(counts) + [True], ignore_index=True)
