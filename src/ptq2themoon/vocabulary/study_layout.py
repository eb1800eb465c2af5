"""Which files the study makes, by name: for the workflow that makes them and for the verifier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ptq2themoon.vocabulary.study import AUTO, Study

# What is evaluated together: the recipes as they are, with the other weight axis, with each activation
# quantized once, and the recipe found for the model. The first bits are the wide ones.
PARTS = {"wide": ("input", "output", AUTO), "narrow": ("input", "output", "once", AUTO)}
# The parts that each table of the ablation is made of.
TABLES_OF = {"input": ("input", AUTO), "output": ("output",), "once": ("once", AUTO)}
FIGURES = (
    *(f"ablation_{variant}" for variant in TABLES_OF),
    *("ranking", "fusion", "activations", "activations_block", "errors", "errors_average"),
    *("fusion_published", "errors_published"),
    *("error_histograms_per_tensor", "error_histograms_per_channel"),
    *("attention_overview", "attention_heads", "attention_rollout"),
)
TABLES = (
    *(f"ablation_{variant}.md" for variant in TABLES_OF),
    *("bits.json", "fp32.json", "search.csv", f"{AUTO}.yaml", "fusion_operators.csv"),
    *("activations_largest.csv", "error_histograms.csv", "error_channels.csv"),
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


def study_files(models: Iterable[str], results: Path = Path("results")) -> list[Path]:
    """Every file that `snakemake study` promises: a figure has its numbers in a table of its name."""
    names = [*(f"{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg", "csv")), *TABLES]
    files = [results / model / "study" / name for model in models for name in names]
    return files + [results / "study" / f"models.{kind}" for kind in ("csv", "md", "png", "svg")]
