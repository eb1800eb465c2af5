"""The stages that draw the study's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Output, Setting
from ptq2themoon.vocabulary.stages.common import Figure
from ptq2themoon.vocabulary.stages.figures import MapsFigure, PlotAttention, names_of
from ptq2themoon.vocabulary.stages.study_tables import (
    OF_READING,
    TABLE,
    ModelName,
    VariantName,
    of_looked_at,
    of_study,
)
from ptq2themoon.vocabulary.study_layout import (
    NARROW_BITS,
    PUBLISHED,
    of_all_models,
    studied,
)


class PlotStudyAblation(Figure):
    """Draw the ablation as bars."""

    stage: ClassVar[str] = "plot_study_ablation"
    where: ClassVar[str] = OF_READING

    name: ModelName
    """What the figure calls the model."""
    variant: VariantName
    """How recipes are read."""
    table: Annotated[Path, Input(TABLE)]
    """Table of study_table."""
    out_png: Annotated[Path, Output(studied("ablation_{reading}.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(studied("ablation_{reading}.svg"))]
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
    """Share of the removable error, as in study_auto."""
    out_png: Annotated[Path, Output(studied("ranking.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(studied("ranking.svg"))]
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


class PlotStudyModels(Figure):
    """Draw all models beside each other."""

    stage: ClassVar[str] = "plot_study_models"
    where: ClassVar[str] = ""

    table: Annotated[Path, Input(of_all_models("models.csv"))]
    """Table of study_models."""
    out_png: Annotated[Path, Output(of_all_models("models.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(of_all_models("models.svg"))]
    """The figure."""


class PlotStudyFusion(Figure):
    """Draw what fusion saves."""

    stage: ClassVar[str] = "plot_study_fusion"

    table: Annotated[Path, of_study("fusion.csv")]
    """fusion.csv."""
    operators: Annotated[Path, of_study("fusion_operators.csv")]
    """fusion_operators.csv."""
    out_png: Annotated[Path, Output(studied("fusion.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(studied("fusion.svg"))]
    """The figure."""


class PlotStudyActivations(Figure):
    """Draw the ranges of the layers' inputs."""

    stage: ClassVar[str] = "plot_study_activations"

    channels: Annotated[Path, of_study("activations.csv")]
    """activations.csv."""
    largest: Annotated[Path, of_study("activations_largest.csv")]
    """activations_largest.csv."""
    block: Annotated[int, Setting("study.block")]
    """The block in the detailed figure; a negative number counts from the end."""
    out_png: Annotated[Path, Output(studied("activations.png"))]
    """All blocks."""
    out_svg: Annotated[Path, Output(studied("activations.svg"))]
    """All blocks."""
    out_block: Annotated[Path, Output(studied("activations_block.csv"))]
    """CSV of that block."""
    out_block_png: Annotated[Path, Output(studied("activations_block.png"))]
    """That block."""
    out_block_svg: Annotated[Path, Output(studied("activations_block.svg"))]
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
    out_histograms: Annotated[tuple[Path, Path], _files("error_histograms", "png", "svg")]
    """PNG and SVG of the histograms."""


class PlotStudyAttention(PlotAttention):
    """Draw attention maps of the study, and write the numbers drawn."""

    where: ClassVar[str] = "{model}/study"

    maps: Annotated[tuple[str, ...], of_looked_at(layout.ATTENTION_MAPS)]
    """NAME=attention_maps.safetensors of each graph, the reference (fp32) first."""
    out_overview_png: Annotated[Path, Output(studied("attention_overview.png"))]
    """Maps averaged over heads."""
    out_overview_svg: Annotated[Path, Output(studied("attention_overview.svg"))]
    """Maps averaged over heads."""
    out_heads_png: Annotated[Path, Output(studied("attention_heads.png"))]
    """Maps of every head."""
    out_heads_svg: Annotated[Path, Output(studied("attention_heads.svg"))]
    """Maps of every head."""
    out_overview_csv: Annotated[Path | None, Output(studied("attention_overview.csv"))] = None
    """The numbers in the figure."""
    out_heads_csv: Annotated[Path | None, Output(studied("attention_heads.csv"))] = None
    """The numbers in the figure."""


class PlotRollout(MapsFigure):
    """Draw attention rollout."""

    stage: ClassVar[str] = "plot_rollout"

    maps: Annotated[tuple[str, ...], of_looked_at(layout.ROLLOUT)]
    """NAME=rollout.safetensors of each graph, the reference (fp32) first."""
    out_png: Annotated[Path, Output(studied("attention_rollout.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(studied("attention_rollout.svg"))]
    """The figure."""
    out_csv: Annotated[Path, Output(studied("attention_rollout.csv"))]
    """The numbers in the figure."""

    def parameters(self) -> dict[str, Any]:
        return {"graphs": names_of(self.maps)} | super().parameters()
