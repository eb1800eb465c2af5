"""The stages that say how good a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output, Parts, Setting
from ptq2themoon.vocabulary.stages.common import OnImages, Qparams, asked_images

ReferenceFile = Annotated[Path, Input(layout.REFERENCE)]
BatchSize = Annotated[int, Setting("evaluation.batch_size")]
Block = Annotated[int, Setting("attention.block")]
OF_RUN = "{model}/{recipe}/{key}"


class OnAllImages(OnImages):
    """A stage that measures outputs and attention of all evaluation images."""

    batch_size: BatchSize
    """Images in a batch."""
    block: Block = -1
    """The block whose attention is measured; a negative number counts from the end."""


class Reference(OnAllImages):
    """Compute outputs and attention of all evaluation images in floating point, once per model."""

    stage: ClassVar[str] = "reference"
    where: ClassVar[str] = "{model}/fp32"

    parts: Annotated[tuple[Path, ...], Parts(layout.REFERENCE_PART)] = ()
    """Results of the shards, in order; without them, this stage computes all."""
    out: Annotated[Path, Output(layout.FP32_METRICS)]
    """metrics.json."""
    out_reference: Annotated[Path, Output(layout.REFERENCE)]
    """reference.safetensors."""


class Evaluate(OnAllImages):
    """Measure a quantized model on all evaluation images: accuracy, agreement, attention."""

    stage: ClassVar[str] = "evaluate"
    where: ClassVar[str] = OF_RUN

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    reference: ReferenceFile
    """reference.safetensors."""
    parts: Annotated[tuple[Path, ...], Parts(layout.SIMULATED_PART)] = ()
    """Results of the shards, in order; without them, this stage computes all."""
    out: Annotated[Path, Output(layout.METRICS)]
    """metrics.json."""
    out_attention: Annotated[Path, Output(layout.ATTENTION)]
    """attention.csv."""
    out_simulated: Annotated[Path, Output(layout.SIMULATED)]
    """simulated.safetensors."""


class OfShard(Job):
    """A stage that runs on one shard of the evaluation images."""

    shard: Annotated[str, Setting("{scatteritem}")]
    """Number of the shard, such as 2-of-3."""


class ReferencePart(OnAllImages, OfShard):
    """Compute outputs and attention of one shard of the evaluation images in floating point."""

    stage: ClassVar[str] = "reference_part"
    where: ClassVar[str] = "{model}/fp32/{scatteritem}"

    out: Annotated[Path, Output(layout.REFERENCE_PART)]
    """The results of the shard, a safetensors file."""


class EvaluatePart(OnAllImages, OfShard):
    """Run a quantized model on one shard of the evaluation images."""

    stage: ClassVar[str] = "evaluate_part"
    where: ClassVar[str] = f"{OF_RUN}/{{scatteritem}}"

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    reference: ReferenceFile
    """reference.safetensors."""
    out: Annotated[Path, Output(layout.SIMULATED_PART)]
    """The results of the shard, a safetensors file."""


class OperatorErrors(OnImages):
    """Measure the error of every quantized operator, three ways, and how stable their ranking is."""

    stage: ClassVar[str] = "operator_errors"
    where: ClassVar[str] = OF_RUN

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    reference: ReferenceFile
    """reference.safetensors."""
    images: Annotated[int, asked_images("errors", "images")]
    """Evaluation images for the errors of operators' outputs."""
    logits_images: Annotated[int, asked_images("errors", "logits_images")]
    """Evaluation images for the errors of the logits."""
    batch_size: int = 16
    """Images in a batch."""
    out: Annotated[Path, Output(layout.OPERATOR_ERRORS)]
    """operators.csv."""
    out_ranking: Annotated[Path, Output(layout.RANKING)]
    """ranking.json."""


class OfVariant(OnImages):
    """A stage that runs on floating point and on each quantized model."""

    recipe: Annotated[str, Setting(lambda _, wildcards: wildcards.variant.partition("/")[0])]
    """Name in the figure; fp32 for floating point."""
    qparams: Annotated[
        tuple[Path, Path] | None,
        Input(lambda _, wildcards: qparams_of_variant(wildcards.model, wildcards.variant)),
    ] = None
    """qparams.json and qparams.safetensors; without them, floating point."""
    images: Annotated[int, asked_images("attention", "images")]
    """How many images the figure shows."""


def qparams_of_variant(model: str, variant: str) -> list[str]:
    """None for fp32."""
    if variant == layout.FP32:
        return []
    return [path.replace(layout.RUN, variant).replace("{model}", model) for path in layout.QPARAMS]


class AttentionMaps(OfVariant):
    """Compute the attention maps of a few images."""

    stage: ClassVar[str] = "attention_maps"
    where: ClassVar[str] = "{model}/{variant}"

    block: Block = -1
    """The block whose attention is drawn; a negative number counts from the end."""
    out: Annotated[Path, Output(layout.ATTENTION_MAPS)]
    """attention_maps.safetensors."""


class Summarize(Job):
    """Put all metrics in one table."""

    stage: ClassVar[str] = "summarize"
    where: ClassVar[str] = ""

    entry: Annotated[
        tuple[tuple[str, str, str, str, str, Path], ...],
        Setting(lambda params, _: list(entries(params, layout.METRICS))),
    ]
    """MODEL RECIPE BITS IMAGES SEED METRICS.JSON of each row; floating point: MODEL fp32 fp32 - - FILE."""
    runtime: Annotated[
        tuple[tuple[str, str, str, str, str, Path], ...],
        Setting(lambda params, _: list(entries(params, layout.RUNTIME)) if params.deploy.modes else []),
    ] = ()
    """The same with runtime.json, for rows with deployed models."""
    ship: Annotated[tuple[str, ...], Input(lambda params, _: ships(params))] = ()
    """RUN=deploy.json of each run's model to ship."""
    out_csv: Annotated[Path, Output(layout.SUMMARY[0])]
    """summary.csv."""
    out_md: Annotated[Path, Output(layout.SUMMARY[1])]
    """summary.md."""
    out_html: Annotated[Path, Output(layout.SUMMARY[2])]
    """summary.html, for the report."""
    out_headlines: Annotated[tuple[Path, ...], Output(layout.HEADLINE_FILES)]
    """Files of single figures, which DVC shows as metrics."""

    def unmarked_inputs(self) -> list[Path]:
        runtime = {row[:5]: row[5] for row in self.runtime}
        return [path for row in self.entry for path in (row[5], runtime.get(row[:5])) if path]

    def parameters(self) -> dict[str, Any]:
        return {"entries": [_row(entry) for entry in self.entry]}


def ships(params: Any) -> list[str]:
    """RUN=PATH of the report of each model to ship, where one is deployed."""
    if layout.SHIPPED not in params.deploy.modes:
        return []
    runs = [run.as_mode(layout.SHIPPED) for model in params.models for run in layout.runs_of(params, model)]
    return [f"{run.model}/{run.variant}={layout.fill(layout.DEPLOYED, run)}" for run in runs]


def _row(entry: tuple[str, str, str, str, str, Path]) -> list[Any]:
    model, recipe, bits, images, seed, _ = entry
    return [model, recipe, bits, *(None if number == "-" else int(number) for number in (images, seed))]


def entries(params: Any, pattern: str) -> Any:
    """A row of the command for each file of `pattern`: floating point first where metrics are meant."""
    for model in params.models:
        if pattern == layout.METRICS:
            floating = layout.Run(model)
            yield [model, layout.FP32, layout.FP32, "-", "-", layout.fill(layout.FP32_METRICS, floating)]
        for run in layout.runs_of(params, model):
            yield [*map(str, run.row), layout.fill(pattern, run)]
