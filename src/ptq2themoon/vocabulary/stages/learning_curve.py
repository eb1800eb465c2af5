"""The stages that measure accuracy against iterations of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Output, Setting
from ptq2themoon.vocabulary.learning_curve_layout import CURVE, CURVE_FIGURE, curves_of
from ptq2themoon.vocabulary.stages.common import Figure, RecipeFile, methods_of, recipe_parameters
from ptq2themoon.vocabulary.stages.study import OnStudyImages


class LearningCurveRun(OnStudyImages):
    """Train a recipe for several numbers of iterations, and measure each result."""

    stage: ClassVar[str] = "learning_curve_run"
    where: ClassVar[str] = "{model}/learning_curve/{recipe}-n{images}-s{seed}"

    calibration: Annotated[Path, Input(layout.CALIBRATION)]
    """Calibration images, to train on."""
    images: Annotated[int, Setting("learning_curve.images")]
    """How many evaluation images are used, at most."""
    recipe: RecipeFile
    """A file of recipes/ with a method that trains."""
    bits: Annotated[str, Setting("learning_curve.bits")]
    """Bits of weights and activations, such as w3a3."""
    iterations: Annotated[tuple[int, ...], Setting("learning_curve.iterations")]
    """Iterations of each trained unit; one model per number."""
    seed: Annotated[int, Setting("{seed}", recorded=False)] = 0
    """Seed of methods."""
    out: Annotated[Path, Output(CURVE)]
    """CSV, one row per number of iterations."""

    def parameters(self) -> dict[str, Any]:
        return {**recipe_parameters(self.recipe), **super().parameters()}

    def methods_called(self) -> tuple[str, ...]:
        return methods_of([self.recipe])


class PlotAccuracyByIterations(Figure):
    """Draw accuracy against iterations, one line per recipe."""

    stage: ClassVar[str] = "plot_accuracy_by_iterations"

    model: Annotated[str, Setting("{model}")]
    """The name of the model."""
    curves: Annotated[
        tuple[Path, ...],
        Input(lambda params, w: [layout.fill(CURVE, run) for run in curves_of(params, w.model)]),
    ]
    """CSV of each recipe and seed."""
    out_png: Annotated[Path, Output(CURVE_FIGURE[0])]
    """The figure."""
    out_svg: Annotated[Path, Output(CURVE_FIGURE[1])]
    """The figure."""
