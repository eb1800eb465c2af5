"""The stages that draw the pipeline's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Output, Setting, named
from ptq2themoon.vocabulary.parameter_files import images_for
from ptq2themoon.vocabulary.stages.common import Figure


def run_names(params: Any, model: str) -> list[str]:
    """How figures call each run: by recipe, and by bits and seed where there are several."""
    several_bits, several_seeds = len(params.bits) > 1, len(params.calibration.seeds) > 1
    return [
        " ".join(
            [run.recipe, *([run.bits] if several_bits else []), *([f"s{run.seed}"] if several_seeds else [])]
        )
        for run in layout.runs_of(params, model)
    ]


def of_runs(params: Any, model: str, pattern: str) -> list[str]:
    """The file of each run of a model."""
    return [layout.fill(pattern, run) for run in layout.runs_of(params, model)]


def names_of(values: Sequence[str]) -> list[str]:
    """What stands before `=` in each."""
    return [value.partition("=")[0] for value in values]


def _mode_images(params: Any, wildcards: Any) -> list[str]:
    keys = {"accumulated": "images", "local": "images", "logits": "logits_images"}
    return [f"{mode}={images_for(params, wildcards.model, 'errors', key)}" for mode, key in keys.items()]


class PlotErrors(Figure):
    """Draw the error of every operator along the network."""

    stage: ClassVar[str] = "plot_errors"

    table: Annotated[
        tuple[str, ...],
        Input(
            lambda params, w: named(
                run_names(params, w.model), of_runs(params, w.model, layout.OPERATOR_ERRORS)
            )
        ),
    ]
    """NAME=operators.csv of each recipe."""
    mode_images: Annotated[tuple[str, ...], Setting(_mode_images)] = ()
    """MODE=N: how many images each way of measuring used, for the titles."""
    worst: int = 3
    """How many operators are named, per recipe and way of measuring."""
    out_png: Annotated[Path, Output(layout.figure("errors_along_network", "png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(layout.figure("errors_along_network", "svg"))]
    """The figure."""

    def parameters(self) -> dict[str, Any]:
        images = {mode: int(count) for mode, _, count in (each.partition("=") for each in self.mode_images)}
        return {"recipes": names_of(self.table), "mode_images": images, "worst": self.worst, "dpi": self.dpi}


class PlotTop1(Figure):
    """Draw the top-1 of every recipe; without labels, the error of its output."""

    stage: ClassVar[str] = "plot_top1"

    summary: Annotated[Path, Input(layout.SUMMARY[0])]
    """summary.csv."""
    model: Annotated[str, Setting("{model}")]
    """The model whose rows are drawn."""
    out_png: Annotated[Path, Output(layout.figure("top1", "png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(layout.figure("top1", "svg"))]
    """The figure."""


class MapsFigure(Figure):
    """A stage that draws attention maps over images."""

    label_names: Annotated[Path | None, Input(layout.MODEL_INFO)] = None
    """JSON list of class names, or a model.json."""
    rows: Annotated[int, Setting("attention.images")] = 4
    """Rows of the figure, one image each, at most."""
    colormap: Annotated[str, Setting("plots.colormap")] = "viridis"
    """A colour map of matplotlib."""


def maps_of(pattern: str) -> Input:
    """NAME=PATH of every variant, floating point first."""

    def files(params: Any, wildcards: Any) -> list[str]:
        model = wildcards.model
        floating = layout.fill(pattern, layout.Run(model))
        return named([layout.FP32, *run_names(params, model)], [floating, *of_runs(params, model, pattern)])

    return Input(files)


class PlotAttention(MapsFigure):
    """Draw attention maps: of every image averaged over heads, and of every head."""

    stage: ClassVar[str] = "plot_attention"

    maps: Annotated[tuple[str, ...], maps_of(layout.ATTENTION_MAPS)]
    """NAME=attention_maps.safetensors of each graph, the reference (fp32) first."""
    image_index: int = 0
    """The image whose heads are drawn."""
    out_overview_png: Annotated[Path, Output(layout.figure("attention_overview", "png"))]
    """Maps averaged over heads."""
    out_overview_svg: Annotated[Path, Output(layout.figure("attention_overview", "svg"))]
    """Maps averaged over heads."""
    out_heads_png: Annotated[Path, Output(layout.figure("attention_heads", "png"))]
    """Maps of every head."""
    out_heads_svg: Annotated[Path, Output(layout.figure("attention_heads", "svg"))]
    """Maps of every head."""
    out_overview_csv: Annotated[Path | None, Output(lambda *_: None)] = None
    """The numbers in the figure."""
    out_heads_csv: Annotated[Path | None, Output(lambda *_: None)] = None
    """The numbers in the figure."""

    def parameters(self) -> dict[str, Any]:
        found = super().parameters()
        return {"graphs": names_of(self.maps)} | found
