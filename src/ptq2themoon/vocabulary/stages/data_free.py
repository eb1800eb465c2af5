"""The stages that compare sources of calibration images: real images, generated images, noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.data_free_layout import FIGURE, IMAGES, MEASURED, TABLE, data_free_runs
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting, named
from ptq2themoon.vocabulary.stages.common import Figure, RecipeFile, methods_of, recipe_parameters
from ptq2themoon.vocabulary.stages.study import OnStudyImages

Sources = Annotated[
    tuple[str, ...],
    Setting(lambda params, _: named(list(params.data_free.sources), list(params.data_free.sources.values()))),
]


class DataFreeRun(OnStudyImages):
    """Calibrate and measure a recipe at some bits, and keep its calibration images."""

    stage: ClassVar[str] = "data_free_run"
    where: ClassVar[str] = "{model}/data_free/{recipe}-n{images}-s{seed}"

    calibration: Annotated[Path, Input(layout.CALIBRATION)]
    """Real calibration images; a recipe that generates its own reads none of them."""
    images: Annotated[int, Setting("data_free.images")]
    """How many evaluation images are used, at most."""
    recipe: RecipeFile
    """A file of recipes/."""
    bits: Annotated[tuple[str, ...], Setting("data_free.bits")]
    """Bits of weights and activations, such as w8a8."""
    seed: Annotated[int, Setting("{seed}", recorded=False)] = 0
    """Seed of methods."""
    out: Annotated[Path, Output(MEASURED)]
    """CSV, one row per bits."""
    out_images: Annotated[Path, Output(IMAGES)]
    """The calibration images as safetensors: float32 normalised, and uint8."""

    def parameters(self) -> dict[str, Any]:
        return {**recipe_parameters(self.recipe), **super().parameters()}

    def methods_called(self) -> tuple[str, ...]:
        return methods_of([self.recipe])


class DataFreeTable(Job):
    """Put the means of all sources in one table."""

    stage: ClassVar[str] = "data_free_table"

    sources: Sources
    """NAME=RECIPE of each source."""
    runs: Annotated[
        tuple[Path, ...],
        Input(lambda params, w: [layout.fill(MEASURED, run) for run in data_free_runs(params, w.model)]),
    ]
    """CSV of each recipe and seed."""
    out: Annotated[Path, Output(TABLE)]
    """CSV, one row per source and bits."""


def _shown(params: Any, wildcards: Any) -> list[str]:
    """The images of each source with the first seed."""
    settings = params.data_free
    runs = [
        layout.Run(wildcards.model, recipe, images=settings.calibration_images, seed=settings.seeds[0])
        for recipe in settings.sources.values()
    ]
    return named(list(settings.sources), [layout.fill(IMAGES, run) for run in runs])


class PlotDataFree(Figure):
    """Draw some images of each source, and the results of calibration on it."""

    stage: ClassVar[str] = "plot_data_free"

    model: Annotated[str, Setting("{model}")]
    """The name of the model."""
    table: Annotated[Path, Input(TABLE)]
    """data_free.csv."""
    images: Annotated[tuple[str, ...], Input(_shown)]
    """NAME=IMAGES.safetensors of each source."""
    shown: Annotated[int, Setting("data_free.shown")] = 8
    """Images of each source, at most."""
    out_png: Annotated[Path, Output(FIGURE[0])]
    """The figure."""
    out_svg: Annotated[Path, Output(FIGURE[1])]
    """The figure."""
