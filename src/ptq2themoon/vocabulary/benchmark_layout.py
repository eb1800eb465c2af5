"""Where every result of the benchmark lies."""

from __future__ import annotations

from typing import Any

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.modes import MODES

TABLES = ("latency", "peers", "operators")
RANDOM = "random-{architecture}"  # the name of a model that only the benchmark has
WEIGHTS = layout.HEAVY.format(model=RANDOM) + "/weights.safetensors"
STRETCHED = "stretched-{base}"  # one of `models` with outlier channels
STRETCHED_WEIGHTS = layout.HEAVY.format(model=STRETCHED) + "/weights.safetensors"
RANDOM_IMAGES = layout.HEAVY.format(model=RANDOM) + "/images.safetensors"


def of_model(name: str) -> str:
    """The pattern of a model's file in the benchmark."""
    return f"{layout.RESULTS}/benchmarks/{{model}}/{name}"


def of_all_models(name: str) -> str:
    """A file that stands for all models."""
    return f"{layout.RESULTS}/benchmarks/{name}"


def benchmarked(params: Any) -> list[str]:
    """Every model that is timed."""
    return [*params.models, *params.stretched, *params.benchmark.random]


def timed_run(params: Any, model: str, recipe: str) -> layout.Run:
    """The run whose models are timed: the pipeline's first bits and seed."""
    random = model in params.benchmark.random
    images = params.benchmark.images if random else params.calibration.images
    return layout.Run(model, recipe, params.bits[0], images, params.calibration.seeds[0])


def deployed(params: Any, model: str) -> dict[str, str]:
    """int8.onnx by recipe/mode."""
    learned = [] if model in params.benchmark.random else params.benchmark.learned
    recipes = dict.fromkeys([*params.recipes, *params.benchmark.recipes, *learned])
    runs = (timed_run(params, model, recipe) for recipe in recipes)
    return {
        f"{run.recipe}/{mode}": layout.fill(layout.INT8, run.as_mode(mode)) for run in runs for mode in MODES
    }
