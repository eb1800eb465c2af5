"""Where every result of calibration without data lies, and which there are."""

from __future__ import annotations

from typing import Any

from ptq2themoon.vocabulary.layout import HEAVY, SMALL, Run, fill

KEY = "{recipe}-n{images}-s{seed}"
MEASURED = f"{SMALL}/data_free/{KEY}.csv"
IMAGES = f"{HEAVY}/data_free/{KEY}.safetensors"
TABLE = f"{SMALL}/data_free/data_free.csv"
FIGURE = tuple(f"{SMALL}/data_free/data_free.{kind}" for kind in ("png", "svg"))


def data_free_runs(params: Any, model: str) -> list[Run]:
    """Every recipe with every seed."""
    settings = params.data_free
    return [
        Run(model, recipe, images=settings.calibration_images, seed=seed)
        for recipe in dict.fromkeys(settings.sources.values())
        for seed in settings.seeds
    ]


def data_free_files(params: Any) -> list[str]:
    """Every file that `snakemake data_free` promises."""
    return [fill(pattern, Run(model)) for model in params.models for pattern in (TABLE, *FIGURE)]
