"""Where every result of the leaderboard lies, and which there are."""

from __future__ import annotations

from typing import Any

from ptq2themoon.vocabulary.layout import RESULTS, SMALL, Run, fill

PUBLISHED = "resources/published/imagenet.csv"


def of_model(name: str) -> str:
    """The pattern of a model's file in the leaderboard."""
    return f"{SMALL}/leaderboard/{name}"


def of_all_models(name: str) -> str:
    """A file that stands for all models."""
    return f"{RESULTS}/leaderboard/{name}"


ROW = of_model("{recipe}/{bits}-n{images}.json")
KERNELS, COST = of_model("{recipe}/kernels.csv"), of_model("{recipe}/cost.csv")
TABLE, COSTS = of_all_models("leaderboard.csv"), of_all_models("cost.csv")
PAGE, PUBLISHED_PAGE = of_all_models("leaderboard.md"), of_all_models("published.md")
FIGURES = ("accuracy_by_bits", "accuracy_by_size", "accuracy_by_cost")


def rows_of(params: Any, model: str) -> list[Run]:
    """Every row of a model without its seeds: recipes, then bits."""
    return [run for recipe in params.leaderboard.recipes for run in rows_of_recipe(params, model, recipe)]


def rows_of_recipe(params: Any, model: str, recipe: str) -> list[Run]:
    """One row for each bits."""
    settings = params.leaderboard
    return [Run(model, recipe, bits, settings.calibration_images) for bits in settings.bits_for(recipe)]


def runs_of_row(params: Any, row: Any) -> list[Run]:
    """The quantizations that a row is the mean of, one for each seed."""
    seeds = params.leaderboard.seeds
    return [Run(row.model, row.recipe, row.bits, int(row.images), seed) for seed in seeds]


def leaderboard_files(params: Any) -> list[str]:
    """Every file that `snakemake leaderboard` promises."""
    figures = [of_model(f"{name}.{kind}") for name in FIGURES for kind in ("png", "svg")]
    return [
        *(TABLE, COSTS, PAGE, PUBLISHED_PAGE),
        *(fill(pattern, Run(model)) for model in params.models for pattern in figures),
    ]
