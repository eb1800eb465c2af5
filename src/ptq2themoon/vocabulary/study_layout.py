"""Where every result of the study lies, and which there are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ptq2themoon.vocabulary.layout import RESULTS, SMALL, Run, fill, runs_of
from ptq2themoon.vocabulary.study_parameters import AUTO, Study

# How a recipe is read: its per-channel weights along the input channel, as the study has them; along the
# output channel, as integer GEMMs need them; or along the input channel, and each activation quantized
# once, by the operators that read it: elsewhere the one that makes it quantizes it per tensor before.
Variant = Literal["input", "output", "once"]


def studied(name: str) -> str:
    """The pattern of a model's file in the study."""
    return f"{SMALL}/study/{name}"


def of_all_models(name: str) -> str:
    """A file that stands for all models."""
    return f"{RESULTS}/study/{name}"


NARROW_BITS, AUTO_RECIPE = studied("bits.json"), studied(f"{AUTO}.yaml")
ABLATION_RUN = studied("ablation/{width}-{part}-s{seed}.csv")
PUBLISHED = "resources/study"

# What is evaluated together: the recipes as they are, with the other weight axis, with each activation
# quantized once, and the recipe found for the model. The first bits are the wide ones.
PARTS = {"wide": ("input", "output", AUTO), "narrow": ("input", "output", "once", AUTO)}
# The parts that each table of the ablation is made of.
TABLES_OF = {"input": ("input", AUTO), "output": ("output",), "once": ("once", AUTO)}
FIGURES = (
    *(f"ablation_{variant}" for variant in TABLES_OF),
    *("ranking", "fusion", "activations", "activations_block", "errors", "errors_average"),
    *("error_histograms", "attention_overview", "attention_heads", "attention_rollout"),
)
PUBLISHED_FIGURES = ("fusion_published", "errors_published")  # drawn once, not for each model
TABLES = (
    *(f"ablation_{variant}.md" for variant in TABLES_OF),
    *("bits.json", "fp32.json", "search.csv", f"{AUTO}.yaml", "fusion_operators.csv"),
    *("activations_largest.csv", "error_channels.csv"),
    *("attention_fidelity.csv", "attention_fidelity.md"),
)


def ablation_runs(study: Study, parts: Iterable[str]) -> list[str]:
    """The runs of these parts at the bits that have them all, widest bits first."""
    wanted = list(parts)
    return [
        f"ablation/{width}-{part}-s{seed}.csv"
        for width, there in PARTS.items()
        for part in wanted
        for seed in study.seeds
        if set(wanted) <= set(there)
    ]


def table_rows(study: Study, variant: str) -> list[str]:
    """The recipes of a table of the ablation, in order."""
    return [*study.recipes, *[AUTO] * (AUTO in TABLES_OF[variant])]


def first_run(params: Any, model: str, recipe: str) -> Run:
    """The run of a recipe at the pipeline's first seed and the study's widest bits."""
    run = runs_of(params, model)[0]
    return Run(model, recipe, params.study.bits[0], run.images, run.seed)


def study_files(models: Iterable[str]) -> list[Path]:
    """Every file that `snakemake study` promises: a figure has its numbers in a table of its name."""
    names = [*(f"{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg", "csv")), *TABLES]
    files = [fill(studied(name), Run(model)) for model in models for name in names]
    figures = [f"{figure}.{kind}" for figure in PUBLISHED_FIGURES for kind in ("png", "svg", "csv")]
    common = (
        of_all_models(name)
        for name in (*figures, *(f"models.{kind}" for kind in ("csv", "md", "png", "svg")))
    )
    return [Path(file) for file in (*files, *common)]
