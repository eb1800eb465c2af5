"""The stages that make tables and figures of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting, named
from ptq2themoon.vocabulary.stages.common import Figure, figure_files
from ptq2themoon.vocabulary.stages.evaluate import Block
from ptq2themoon.vocabulary.stages.figures import MapsFigure, PlotAttention, names_of
from ptq2themoon.vocabulary.study_layout import (
    NARROW_BITS,
    PUBLISHED,
    TABLES_OF,
    Variant,
    ablation_runs,
    of_all_models,
    studied,
    table_rows,
)
from ptq2themoon.vocabulary.study_parameters import CUSTOMIZED, NORMS

ModelName = Annotated[str, Setting("{model}", recorded=False)]
VariantName = Annotated[Variant, Setting("{variant}")]
OF_VARIANT = "{model}/{variant}"
TABLE = studied("ablation_{variant}.csv")


def of_study(name: str) -> Input:
    """A file of a model's study."""
    return Input(studied(name))


def _runs(parts: tuple[str, ...], params: Any, wildcards: Any) -> list[str]:
    return [layout.fill(studied(name), wildcards) for name in ablation_runs(params.study, parts)]


class StudyTable(Job):
    """Put the runs of the ablation in one table."""

    stage: ClassVar[str] = "study_table"
    where: ClassVar[str] = OF_VARIANT

    name: ModelName
    """What the table calls the model."""
    variant: VariantName
    """How recipes are read."""
    recipes: Annotated[tuple[str, ...], Setting(lambda params, w: table_rows(params.study, w.variant))]
    """The rows, in order."""
    runs: Annotated[tuple[Path, ...], Input(lambda params, w: _runs(TABLES_OF[w.variant], params, w))]
    """Runs of study_ablation, widest bits first."""
    plain: Annotated[
        tuple[Path, ...],
        Input(lambda params, w: _runs(("input",), params, w) if w.variant == "output" else []),
    ] = ()
    """Runs for recipes that the variant leaves alone."""
    metrics: Annotated[Path, of_study("fp32.json")]
    """fp32.json."""
    published: Annotated[Path, Input(f"{PUBLISHED}/ablation.csv")]
    """The study's published figures."""
    out: Annotated[Path, Output(TABLE)]
    """CSV."""
    out_md: Annotated[Path, Output(studied("ablation_{variant}.md"))]
    """Markdown."""

    def parameters(self) -> dict[str, Any]:
        return {"model": self.name, **super().parameters()}


class PlotStudyAblation(Figure):
    """Draw the ablation as bars."""

    stage: ClassVar[str] = "plot_study_ablation"
    where: ClassVar[str] = OF_VARIANT

    name: ModelName
    """What the figure calls the model."""
    variant: VariantName
    """How recipes are read."""
    table: Annotated[Path, Input(TABLE)]
    """Table of study_table."""
    out_png: Annotated[Path, figure_files(studied("ablation_{variant}.png"))[0]]
    """The figure."""
    out_svg: Annotated[Path, figure_files(studied("ablation_{variant}.png"))[1]]
    """The figure."""

    def parameters(self) -> dict[str, Any]:
        return {"model": self.name, **super().parameters()}


class PlotStudyRanking(Figure):
    """Draw which operators gain from per-channel scales."""

    stage: ClassVar[str] = "plot_study_ranking"

    name: ModelName
    """What the figure calls the model."""
    ranking: Annotated[Path, of_study("ranking.csv")]
    """Table of study_auto."""
    search: Annotated[Path, of_study("search.csv")]
    """Table of study_auto."""
    bits_from: Annotated[Path, Input(NARROW_BITS)]
    """bits.json of study_bits."""
    share: Annotated[float, Setting("study.share")]
    """As study_auto was asked for."""
    out_png: Annotated[Path, figure_files(studied("ranking.png"))[0]]
    """The figure."""
    out_svg: Annotated[Path, figure_files(studied("ranking.png"))[1]]
    """The figure."""

    def parameters(self) -> dict[str, Any]:
        return {"model": self.name, **super().parameters()}


def published_files(name: str) -> Output:
    """PNG, SVG and CSV of a figure of published numbers; drawn once for all models."""
    return Output(tuple(of_all_models(f"{name}.{kind}") for kind in ("png", "svg", "csv")))


class PlotStudyPublished(Figure):
    """Draw what the study printed."""

    stage: ClassVar[str] = "plot_study_published"
    where: ClassVar[str] = ""

    errors: Annotated[Path, Input(f"{PUBLISHED}/errors_by_block.csv")]
    """errors_by_block.csv."""
    models: Annotated[Path, Input(f"{PUBLISHED}/models.csv")]
    """models.csv."""
    out_errors: Annotated[tuple[Path, Path, Path], published_files("errors_published")]
    """PNG, SVG and CSV."""
    out_fusion: Annotated[tuple[Path, Path, Path], published_files("fusion_published")]
    """PNG, SVG and CSV."""


def _of_models(variant: str) -> Input:
    pattern = TABLE.replace("{variant}", variant)
    return Input(lambda params, _: [layout.fill(pattern, layout.Run(name)) for name in params.models])


class StudyModels(Job):
    """Put all models in one table."""

    stage: ClassVar[str] = "study_models"
    where: ClassVar[str] = ""

    models: Annotated[tuple[str, ...], Setting(lambda params, _: list(params.models))]
    """Names of the models."""
    plain: Annotated[tuple[Path, ...], _of_models("input")]
    """ablation_input.csv of each."""
    once: Annotated[tuple[Path, ...], _of_models("once")]
    """ablation_once.csv of each."""
    published: Annotated[Path, Input(f"{PUBLISHED}/models.csv")]
    """The study's published figures."""
    out: Annotated[Path, Output(of_all_models("models.csv"))]
    """CSV."""
    out_md: Annotated[Path, Output(of_all_models("models.md"))]
    """Markdown."""


class PlotStudyModels(Figure):
    """Draw all models beside each other."""

    stage: ClassVar[str] = "plot_study_models"
    where: ClassVar[str] = ""

    table: Annotated[Path, Input(of_all_models("models.csv"))]
    """Table of study_models."""
    out_png: Annotated[Path, figure_files(of_all_models("models.png"))[0]]
    """The figure."""
    out_svg: Annotated[Path, figure_files(of_all_models("models.png"))[1]]
    """The figure."""


class PlotStudyFusion(Figure):
    """Draw what fusion saves."""

    stage: ClassVar[str] = "plot_study_fusion"

    table: Annotated[Path, of_study("fusion.csv")]
    """fusion.csv."""
    operators: Annotated[Path, of_study("fusion_operators.csv")]
    """fusion_operators.csv."""
    out_png: Annotated[Path, figure_files(studied("fusion.png"))[0]]
    """The figure."""
    out_svg: Annotated[Path, figure_files(studied("fusion.png"))[1]]
    """The figure."""


class PlotStudyActivations(Figure):
    """Draw the ranges of the layers' inputs."""

    stage: ClassVar[str] = "plot_study_activations"

    channels: Annotated[Path, of_study("activations.csv")]
    """activations.csv."""
    largest: Annotated[Path, of_study("activations_largest.csv")]
    """activations_largest.csv."""
    block: Annotated[int, Setting("study.block")]
    """Drawn closely; from the end when negative."""
    out_png: Annotated[Path, figure_files(studied("activations.png"))[0]]
    """All blocks."""
    out_svg: Annotated[Path, figure_files(studied("activations.png"))[1]]
    """All blocks."""
    out_block: Annotated[Path, Output(studied("activations_block.csv"))]
    """CSV of that block."""
    out_block_png: Annotated[Path, figure_files(studied("activations_block.png"))[0]]
    """That block."""
    out_block_svg: Annotated[Path, figure_files(studied("activations_block.png"))[1]]
    """That block."""


def _files(name: str, *kinds: str) -> Output:
    return Output(tuple(studied(f"{name}.{kind}") for kind in kinds))


class PlotStudyErrors(Figure):
    """Draw the errors of the layers' inputs."""

    stage: ClassVar[str] = "plot_study_errors"

    errors: Annotated[Path, of_study("errors.csv")]
    """errors.csv."""
    average: Annotated[Path, of_study("errors_average.csv")]
    """errors_average.csv."""
    histograms: Annotated[Path, of_study("error_histograms.csv")]
    """error_histograms.csv."""
    out: Annotated[tuple[Path, Path], _files("errors", "png", "svg")]
    """PNG and SVG, by block."""
    out_average: Annotated[tuple[Path, Path], _files("errors_average", "png", "svg")]
    """PNG and SVG, mean over blocks."""
    out_per_tensor: Annotated[
        tuple[Path, Path, Path], _files("error_histograms_per_tensor", "csv", "png", "svg")
    ]
    """CSV, PNG and SVG of the histograms."""
    out_per_channel: Annotated[
        tuple[Path, Path, Path], _files("error_histograms_per_channel", "csv", "png", "svg")
    ]
    """CSV, PNG and SVG of the histograms."""


def looked_at(params: Any) -> list[str]:
    """Recipes whose attention the study looks at: LayerNorm per channel, and its own choice of operators."""
    return [recipe for recipe in (NORMS, CUSTOMIZED) if recipe in params.study.recipes]


def first_run(params: Any, model: str, recipe: str) -> layout.Run:
    """The run of a recipe at the pipeline's first seed and the study's widest bits."""
    run = layout.runs_of(params, model)[0]
    return layout.Run(model, recipe, params.study.bits[0], run.images, run.seed)


def _looked_at(pattern: str, *, floating: bool = True) -> Input:
    def files(params: Any, wildcards: Any) -> list[str]:
        names = looked_at(params)
        runs = [first_run(params, wildcards.model, name) for name in names]
        if floating:
            names, runs = [layout.FP32, *names], [layout.Run(wildcards.model), *runs]
        return named(names, [layout.fill(pattern, run) for run in runs])

    return Input(files)


class PlotStudyAttention(PlotAttention):
    """Draw attention maps of the study, and write the numbers drawn."""

    where: ClassVar[str] = "{model}/study"

    maps: Annotated[tuple[str, ...], _looked_at(layout.ATTENTION_MAPS)]
    """NAME=attention_maps.safetensors of each graph, the reference (fp32) first."""
    out_overview_png: Annotated[Path, figure_files(studied("attention_overview.png"))[0]]
    """Maps averaged over heads."""
    out_overview_svg: Annotated[Path, figure_files(studied("attention_overview.png"))[1]]
    """Maps averaged over heads."""
    out_heads_png: Annotated[Path, figure_files(studied("attention_heads.png"))[0]]
    """Maps of every head."""
    out_heads_svg: Annotated[Path, figure_files(studied("attention_heads.png"))[1]]
    """Maps of every head."""
    out_overview_csv: Annotated[Path | None, Output(studied("attention_overview.csv"))] = None
    """The numbers drawn."""
    out_heads_csv: Annotated[Path | None, Output(studied("attention_heads.csv"))] = None
    """The numbers drawn."""


class PlotRollout(MapsFigure):
    """Draw attention rollout."""

    stage: ClassVar[str] = "plot_rollout"

    maps: Annotated[tuple[str, ...], _looked_at(layout.ROLLOUT)]
    """NAME=rollout.safetensors of each graph, the reference (fp32) first."""
    out_png: Annotated[Path, figure_files(studied("attention_rollout.png"))[0]]
    """The figure."""
    out_svg: Annotated[Path, figure_files(studied("attention_rollout.png"))[1]]
    """The figure."""
    out_csv: Annotated[Path, Output(studied("attention_rollout.csv"))]
    """The numbers drawn."""

    def parameters(self) -> dict[str, Any]:
        return {"graphs": names_of(self.maps)} | super().parameters()


class StudyFidelity(Job):
    """Say how near each recipe's attention keeps to floating point, over all images."""

    stage: ClassVar[str] = "study_fidelity"

    fusion: Annotated[Path, Input(layout.FUSION)]
    """fusion.json."""
    table: Annotated[tuple[str, ...], _looked_at(layout.ATTENTION, floating=False)] = ()
    """NAME=attention.csv of each recipe."""
    bits: Annotated[str, Setting(lambda params, _: params.study.bits[0])]
    """Of all the tables, as in w8a8."""
    block: Block = -1
    """Whose attention the tables compare; from the end when negative."""
    out_csv: Annotated[Path, Output(studied("attention_fidelity.csv"))]
    """CSV."""
    out_md: Annotated[Path, Output(studied("attention_fidelity.md"))]
    """Markdown."""

    def parameters(self) -> dict[str, Any]:
        return {"recipes": names_of(self.table), **super().parameters()}
