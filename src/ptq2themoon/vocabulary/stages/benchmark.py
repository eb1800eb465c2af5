"""The stages of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.benchmark_layout import (
    RANDOM,
    RANDOM_IMAGES,
    STRETCHED,
    STRETCHED_WEIGHTS,
    TABLES,
    WEIGHTS,
    benchmarked,
    deployed,
    of_all_models,
    of_model,
    timed_run,
)
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting, named
from ptq2themoon.vocabulary.model_source import Source
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.common import EvaluationSource, OnDataset, OnModel, recipe_files
from ptq2themoon.vocabulary.stages.origin import timm_arguments

ModelName = Annotated[str, Setting("{model}", recorded=False)]
Rounds = Annotated[int, Setting("benchmark.rounds")]
Threads = Annotated[int, Setting("benchmark.threads")]
EVALUATION = of_model("evaluation.safetensors")


def _calibration(params: Any, wildcards: Any) -> str:
    return layout.fill(layout.CALIBRATION, timed_run(params, wildcards.model, params.recipes[0]))


CalibrationFile = Annotated[Path, Input(_calibration)]


class BenchmarkWeights(Job):
    """Draw random weights and random images for an architecture."""

    stage: ClassVar[str] = "benchmark_weights"
    where: ClassVar[str] = RANDOM

    architecture: Annotated[str, Setting("{architecture}")]
    """A timm model."""
    images: Annotated[
        int, Setting(lambda params, _: max(params.benchmark.images, params.calibration.check[0]))
    ]
    """How many images are drawn."""
    seed: Annotated[int, Setting(lambda *_: 0, recorded=False)] = 0
    """Seed of weights and images."""
    out: Annotated[Path, Output(WEIGHTS)]
    """weights.safetensors."""
    out_images: Annotated[Path, Output(RANDOM_IMAGES)]
    """images.safetensors."""


def _of_base(key: str) -> Setting:
    return Setting(lambda params, wildcards: getattr(params.models[wildcards.base], key))


class BenchmarkStretch(Job):
    """Give a model outlier channels without changing its function."""

    stage: ClassVar[str] = "benchmark_stretch"
    where: ClassVar[str] = STRETCHED

    source: Annotated[str, _of_base("source")]
    """A timm name with tag, local-dir:FOLDER or hf-hub:NAME@REVISION."""
    checkpoint: Annotated[Path | None, _of_base("checkpoint")] = None
    """A file of weights that replaces those of the source."""
    arguments: Annotated[
        str, Setting(lambda params, w: json.dumps(params.models[w.base].arguments), recorded=False)
    ] = "{}"
    """Arguments of timm.create_model, as JSON."""
    seed: Annotated[int, Setting(lambda *_: 0, recorded=False)] = 0
    """Seed of the choice of channels."""
    out: Annotated[Path, Output(STRETCHED_WEIGHTS)]
    """weights.safetensors."""

    def where_from(self) -> Source:
        """The model as it is."""
        return Source(self.source, self.checkpoint, timm_arguments(self.arguments))

    def unmarked_inputs(self) -> list[Path]:
        return self.where_from().files()

    def parameters(self) -> dict[str, Any]:
        return {"source": self.source, "arguments": self.where_from().arguments}


class BenchmarkImages(OnDataset):
    """Preprocess evaluation images for the tools that are compared."""

    stage: ClassVar[str] = "benchmark_images"

    source: EvaluationSource
    """The data set: file, folder or NAME:SPLIT:ROOT."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json."""
    manifest: Annotated[Path, Input(layout.MANIFEST)]
    """evaluation.csv."""
    images: Annotated[int, Setting("benchmark.evaluation_images")]
    """How many images are used at most, spread over the list."""
    out: Annotated[Path, Output(EVALUATION)]
    """Images and labels."""


class BenchmarkPpq(Job):
    """Quantize and export an INT8 model with PPQ alone."""

    stage: ClassVar[str] = "benchmark_ppq"
    runs_on: ClassVar[str] = "cpu"

    model: Annotated[Path, Input(layout.ONNX_MODEL)]
    """model.onnx."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json."""
    images: CalibrationFile
    """Calibration images."""
    out: Annotated[Path, Output(of_model("ppq.onnx"))]
    """The INT8 model."""


class BenchmarkRuntimes(Job):
    """Time and evaluate our models and those of other tools, in rounds."""

    stage: ClassVar[str] = "benchmark_runtimes"
    runs_on: ClassVar[str] = "cpu"

    name: ModelName
    """What the tables call the model."""
    model: Annotated[Path, Input(layout.ONNX_MODEL)]
    """model.onnx, FP32."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json."""
    calibration: CalibrationFile
    """Images that the tools calibrate with."""
    ppq: Annotated[Path | None, Input(of_model("ppq.onnx"))] = None
    """The file that PPQ exports for ONNX Runtime."""
    evaluation: Annotated[
        Path | None,
        Input(
            lambda params, w: layout.fill(EVALUATION, w) if w.model not in params.benchmark.random else None
        ),
    ] = None
    """Images and labels; without them, accuracy is not measured."""
    ours: Annotated[
        tuple[str, ...],
        Input(lambda params, w: named(*map(list, zip(*deployed(params, w.model).items(), strict=True)))),
    ] = ()
    """RECIPE/MODE=int8.onnx of each model."""
    batches: Annotated[tuple[int, ...], Setting("benchmark.batches")]
    """Batches: images per run."""
    rounds: Rounds
    """Rounds; each round runs all models."""
    threads: Threads
    """Threads of each runtime."""
    out_machine: Annotated[Path, Output(of_model("machine.json"))]
    """machine.json."""
    out_latency: Annotated[Path, Output(of_model("latency.csv"))]
    """latency.csv."""
    out_peers: Annotated[Path, Output(of_model("peers.csv"))]
    """peers.csv."""
    out_operators: Annotated[Path, Output(of_model("operators.csv"))]
    """operators.csv."""

    def parameters(self) -> dict[str, Any]:
        variants = [each.partition("=")[0] for each in self.ours]
        return {"model": self.name, "variants": variants, **super().parameters()}


def _first(pattern: str, mode: str = "") -> Any:
    """The file of the pipeline's first recipe."""

    def file(params: Any, wildcards: Any) -> str:
        run = timed_run(params, wildcards.model, params.recipes[0])
        return layout.fill(pattern, run.as_mode(mode))

    return file


class BenchmarkSimulation(OnModel):
    """Time the simulation and the calibration, PPQ's and ours."""

    stage: ClassVar[str] = "benchmark_simulation"
    runs_on: ClassVar[str] = "cpu"

    name: ModelName
    """What the table calls the model."""
    qparams: Annotated[
        tuple[Path, Path],
        Input(lambda params, w: [_first(path)(params, w) for path in layout.QPARAMS]),
    ]
    """qparams.json and qparams.safetensors."""
    images: CalibrationFile
    """Calibration images."""
    recipe: Annotated[Path, Input(lambda params, _: layout.recipe_file(params.recipes[0]), recipe_files)]
    """The recipe to calibrate."""
    int8: Annotated[Path | None, Input(_first(layout.INT8, "faithful"))] = None
    """The faithful INT8 model of these parameters."""
    count: int = 32
    """Calibration images, and images per run of the simulation."""
    batch_size: int = 4
    """Images in a batch of the calibration."""
    rounds: Annotated[int, Setting("benchmark.simulation_rounds")]
    """How often each is timed."""
    threads: Threads
    """Threads of each engine."""
    bits: Annotated[str, Setting(lambda params, _: params.bits[0])]
    """Bits of weights and activations, such as w8a8."""
    out: Annotated[Path, Output(of_model("simulation.csv"))]
    """simulation.csv."""

    def parameters(self) -> dict[str, Any]:
        return {"model": self.name, "recipe": load_recipe(self.recipe).name, **super().parameters()}

    def found_out(self) -> tuple[str, ...]:
        return ("machine",)


def _of_models(*names: str) -> Any:
    def files(params: Any, _: Any) -> list[str]:
        models = benchmarked(params)
        return [layout.fill(of_model(name), layout.Run(model)) for model in models for name in names]

    return files


ALL_TABLES = tuple(f"{table}.csv" for table in (*TABLES, "simulation"))


TABLES_OF_ALL = Output(tuple(of_all_models(name) for name in ALL_TABLES))


class BenchmarkTables(Job):
    """Put the tables of all models together, for programs and for people."""

    stage: ClassVar[str] = "benchmark_tables"
    where: ClassVar[str] = ""

    machine: Annotated[tuple[Path, ...], Input(_of_models("machine.json"))]
    """machine.json of each model."""
    table: Annotated[tuple[Path, ...], Input(_of_models(*ALL_TABLES))]
    """Tables of each model."""
    out_md: Annotated[Path, Output(of_all_models("benchmarks.md"))]
    """Markdown."""
    out_tables: Annotated[tuple[Path, ...], TABLES_OF_ALL]
    """CSV tables, by name."""


class BenchmarkLoading(Job):
    """Time how fast JPEGs are read, beside a model that reads them; no rule runs it."""

    stage: ClassVar[str] = "benchmark_loading"
    runs_on: ClassVar[str] = "cpu"

    images: int = 2000
    """JPEGs to read."""
    model_images: int = 256
    """Images that the model runs on."""
    batch_size: int = 32
    """Images in a batch."""
    repeats: int = 5
    """How often each is timed."""
    cores: int | None = None
    """Threads for reading and for the model; default: all cores."""
    model: str = "deit_tiny_patch16_224"
    """A timm model, weights random."""
    out: Annotated[Path, Output(of_all_models("loading.csv"))] = Path(of_all_models("loading.csv"))
    """CSV."""

    def drawn_with(self) -> int:
        return 0
