"""Where Snakemake writes what a job took: no result, for it changes with every run, and is not kept."""

from __future__ import annotations

from pathlib import Path

from ptq2themoon.vocabulary.job import Job


def times_of(stage: type[Job]) -> str:
    """The pattern of the file with time and memory of a stage's jobs."""
    return str(Path("benchmarks", stage.where, f"{stage.stage}.tsv"))
