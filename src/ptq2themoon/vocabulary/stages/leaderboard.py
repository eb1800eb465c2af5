"""The stages of the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting
from ptq2themoon.vocabulary.leaderboard_layout import (
    COST,
    COSTS,
    KERNELS,
    PAGE,
    PUBLISHED,
    PUBLISHED_PAGE,
    ROW,
    TABLE,
    of_model,
    rows_of,
    rows_of_recipe,
    runs_of_row,
)
from ptq2themoon.vocabulary.stages.calibrate import Calibrate
from ptq2themoon.vocabulary.stages.common import Figure, OnModel
from ptq2themoon.vocabulary.stages.evaluate import OnAllImages, ReferenceFile
from ptq2themoon.vocabulary.times import times_of

Seeds = Annotated[tuple[int, ...], Setting("leaderboard.seeds")]
Bits = Annotated[tuple[str, ...], Setting(lambda params, w: params.leaderboard.bits_for(w.recipe))]
OF_RECIPE = "{model}/{recipe}"


def _of_row(pattern: str) -> Input:
    """A file of each seed of a row."""
    return Input(lambda params, w: [layout.fill(pattern, run) for run in runs_of_row(params, w)])


def _of_bits(pattern: str) -> Input:
    """A file of the first seed at each bits of a recipe."""

    def files(params: Any, wildcards: Any) -> list[str]:
        rows = rows_of_recipe(params, wildcards.model, wildcards.recipe)
        return [layout.fill(pattern, runs_of_row(params, row)[0]) for row in rows]

    return Input(files)


def _runs(params: Any, wildcards: Any) -> list[layout.Run]:
    """Every quantization by a recipe: bits, then seeds."""
    rows = rows_of_recipe(params, wildcards.model, wildcards.recipe)
    return [run for row in rows for run in runs_of_row(params, row)]


class LeaderboardRow(OnAllImages):
    """Measure a recipe at some bits with every seed, image by image."""

    stage: ClassVar[str] = "leaderboard_row"
    where: ClassVar[str] = "{model}/{recipe}/{bits}-n{images}"

    seeds: Seeds
    """The seeds; each has its own quantized model."""
    qparams: Annotated[tuple[Path, ...], _of_row(layout.QPARAMS[0])]
    """qparams.json of each seed."""
    arrays: Annotated[tuple[Path, ...], _of_row(layout.QPARAMS[1])]
    """qparams.safetensors of each seed."""
    reference: ReferenceFile
    """reference.safetensors."""
    images: Annotated[int, Setting("leaderboard.images")]
    """Evaluation images, at most."""
    out: Annotated[Path, Output(ROW)]
    """The row, with every seed's figures and images."""


class LeaderboardKernels(OnModel):
    """Say which operators of a recipe run on integer kernels, and which in floating point."""

    stage: ClassVar[str] = "leaderboard_kernels"
    where: ClassVar[str] = OF_RECIPE

    bits: Bits
    """Bits of weights and activations, such as w8a8."""
    qparams: Annotated[tuple[Path, ...], _of_bits(layout.QPARAMS[0])]
    """qparams.json at each bits."""
    arrays: Annotated[tuple[Path, ...], _of_bits(layout.QPARAMS[1])]
    """qparams.safetensors at each bits."""
    out: Annotated[Path, Output(KERNELS)]
    """kernels.csv, one row per bits."""


class LeaderboardCost(Job):
    """Collect time and memory of calibrations, as Snakemake measured them."""

    stage: ClassVar[str] = "leaderboard_cost"
    where: ClassVar[str] = OF_RECIPE

    bits: Bits
    """Bits of weights and activations, such as w8a8."""
    seeds: Seeds
    """The seeds at each bits."""
    qparams: Annotated[
        tuple[Path, ...],
        Input(lambda params, w: [layout.fill(layout.QPARAMS[0], r) for r in _runs(params, w)]),
    ]
    """qparams.json of each bits and seed, whose calibration was timed."""
    times: Annotated[
        tuple[Path, ...],
        Setting(
            lambda params, w: [layout.fill(times_of(Calibrate), run) for run in _runs(params, w)],
            recorded=False,
        ),
    ]
    """Snakemake's measurements; a clone lacks them until calibrations run again."""
    out: Annotated[Path, Output(COST)]
    """cost.csv, one row per bits and seed."""


def _entries(params: Any, _: Any) -> list[list[str]]:
    return [
        [row.model, row.recipe, row.bits, str(row.images), layout.fill(ROW, row)]
        for model in params.models
        for row in rows_of(params, model)
    ]


def _of_recipes(pattern: str) -> Input:
    """A file of each recipe of each model."""
    return Input(
        lambda params, _: [
            layout.fill(pattern, layout.Run(model, recipe))
            for model in params.models
            for recipe in params.leaderboard.recipes
        ]
    )


class LeaderboardTables(Job):
    """Put all rows in one table, with tests of their differences on the same images."""

    stage: ClassVar[str] = "leaderboard_tables"
    where: ClassVar[str] = ""

    entry: Annotated[tuple[tuple[str, str, str, int, Path], ...], Setting(_entries)]
    """MODEL RECIPE BITS IMAGES FILE of each row."""
    kernels: Annotated[tuple[Path, ...], _of_recipes(KERNELS)]
    """kernels.csv of each model and recipe."""
    costs: Annotated[tuple[Path, ...], _of_recipes(COST)]
    """cost.csv of each model and recipe."""
    bases: Annotated[tuple[str, ...], Setting("leaderboard.bases")] = ()
    """Recipes that rows of the same protocol are compared with."""
    out: Annotated[Path, Output(TABLE)]
    """CSV without times; equal results give equal bytes."""
    out_costs: Annotated[Path, Output(COSTS)]
    """CSV of times and memory."""
    out_md: Annotated[Path, Output(PAGE)]
    """Markdown of both."""

    def unmarked_inputs(self) -> list[Path]:
        return [entry[-1] for entry in self.entry]

    def parameters(self) -> dict[str, Any]:
        return {"rows": [list(entry[:-1]) for entry in self.entry], "bases": list(self.bases)}


class LeaderboardPublished(Job):
    """Put published figures in tables, with the reasons why they cannot be compared."""

    stage: ClassVar[str] = "leaderboard_published"
    where: ClassVar[str] = ""

    published: Annotated[Path, Input(PUBLISHED)]
    """Published figures."""
    out: Annotated[Path, Output(PUBLISHED_PAGE)]
    """Markdown."""


class OfModel(Figure):
    """A figure of one model's rows."""

    model: Annotated[str, Setting("{model}")]
    """The model whose rows are drawn."""
    table: Annotated[Path, Input(TABLE)]
    """leaderboard.csv."""


class PlotAccuracyByBits(OfModel):
    """Draw accuracy against bits, one line per recipe."""

    stage: ClassVar[str] = "plot_accuracy_by_bits"

    out_png: Annotated[Path, Output(of_model("accuracy_by_bits.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(of_model("accuracy_by_bits.svg"))]
    """The figure."""


class PlotAccuracyByCost(OfModel):
    """Draw accuracy against the seconds of calibration."""

    stage: ClassVar[str] = "plot_accuracy_by_cost"

    costs: Annotated[Path, Input(COSTS)]
    """cost.csv of all rows."""
    out_png: Annotated[Path, Output(of_model("accuracy_by_cost.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(of_model("accuracy_by_cost.svg"))]
    """The figure."""


class PlotAccuracyBySize(OfModel):
    """Draw accuracy against the size of the parameters, one line per recipe."""

    stage: ClassVar[str] = "plot_accuracy_by_size"

    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json, for the number of parameters."""
    out_png: Annotated[Path, Output(of_model("accuracy_by_size.png"))]
    """The figure."""
    out_svg: Annotated[Path, Output(of_model("accuracy_by_size.svg"))]
    """The figure."""
