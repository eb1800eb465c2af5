"""Where every result of the learning curves lies, and which there are."""

from __future__ import annotations

from typing import Any

from ptq2themoon.vocabulary.layout import SMALL, Run, fill

CURVE = f"{SMALL}/learning_curve/{{recipe}}-n{{images}}-s{{seed}}.csv"
CURVE_COLUMNS = (
    "recipe", "bits", "calibration_images", "seed", "iterations", "images", "fp32_top1", "top1",
    "agreement", "logits_sqnr_db",
)  # fmt: skip
CURVE_FIGURE = tuple(f"{SMALL}/learning_curve/accuracy_by_iterations.{kind}" for kind in ("png", "svg"))


def curves_of(params: Any, model: str) -> list[Run]:
    """Every recipe with every seed."""
    settings = params.learning_curve
    return [
        Run(model, recipe, images=settings.calibration_images, seed=seed)
        for recipe in settings.recipes
        for seed in settings.seeds
    ]


def learning_curve_files(params: Any) -> list[str]:
    """Every file that `snakemake learning_curve` promises."""
    return [fill(pattern, Run(model)) for model in params.models for pattern in CURVE_FIGURE]
