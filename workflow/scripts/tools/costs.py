"""Fit what jobs cost to what finished runs took: the table that rules and `plan.py` ask."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tyro

from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary import cost_model, stages
from ptq2themoon.vocabulary.cost_model import Fitted
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.job import Job
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.stages.common import OnModel
from ptq2themoon.vocabulary.times import times_of
from ptq2themoon.vocabulary.yaml_files import read_yaml

START_S = 5.0  # that a job with a model takes before its first image: `layernorm` on three sizes of models
MB_PER_GMAC = 190.0  # of a stage that was measured on one size: what `ship` has, on three sizes


class Finished(NamedTuple):
    """What a finished job took."""

    stage: str
    recipe: str
    work: float
    gmacs: float
    seconds: float
    mb: float


def fit(runs: Sequence[Path], out: Path = cost_model.STAGES) -> None:
    """Fit seconds and memory of each stage to the benchmarks of finished runs.

    Args:
        runs: folders with a params.yaml and the benchmarks/ that Snakemake wrote.
        out: CSV, one row per stage, and per recipe of a calibration.
    """
    files = [file for folder in runs for file in sorted((folder / "benchmarks").rglob("*.tsv"))]
    if not files:
        raise UserError(f"{runs[0]}/benchmarks: holds no benchmarks; run the workflow first")
    with Stage("costs", inputs=files, outputs=[out], parameters={}) as stage:
        found: defaultdict[tuple[str, str], list[Finished]] = defaultdict(list)
        on_model = {kind.stage for kind in kinds(Job) if issubclass(kind, OnModel)} | {"export", "fuse"}
        for folder in runs:
            for job in finished(folder):
                found[job.stage, job.recipe].append(job)
        rows = [fitted(*key, jobs, key[0] in on_model) for key, jobs in sorted(found.items())]
        names = ("stage", "recipe", "jobs", *list(Fitted.__annotations__)[2:])
        write_csv(stage.temporary(out), names, (dict(zip(names, row, strict=True)) for row in rows))


def finished(folder: Path) -> Iterator[Finished]:
    """The jobs of a run."""
    mapping = read_yaml(folder / "params.yaml")
    params = Params.from_mapping(mapping, str(folder / "params.yaml"), folder / "recipes")
    for kind in kinds(Job):
        pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", wildcard, re.escape(times_of(kind))))
        for file in sorted((folder / "benchmarks").rglob(f"{kind.stage}.tsv")):
            match = pattern.fullmatch(file.relative_to(folder).as_posix())
            if match is None:
                continue
            wildcards = SimpleNamespace(**match.groupdict())
            model = getattr(wildcards, "model", None)
            size = cost_model.size_of(params, model) if model else cost_model.NONE
            images = cost_model.images_of(kind, params, wildcards)
            work = images * (1 if kind.stage in cost_model.DECODING else size.gmacs)
            row = pd.read_csv(file, sep="\t").iloc[-1]
            recipe = getattr(wildcards, "recipe", "") if kind.stage == "calibrate" else ""
            yield Finished(kind.stage, recipe, work, size.gmacs, float(row["s"]), float(row["max_rss"]))


def wildcard(match: re.Match[str]) -> str:
    """A wildcard as a group; only a variant may hold a slash."""
    name = match.group(1)
    return f"(?P<{name}>{'.+' if name == 'variant' else '[^/]+'})"


def kinds(base: type[Job]) -> Iterator[type[Job]]:
    """Every stage below one, declared in modules that are all imported first."""
    for module in pkgutil.iter_modules(stages.__path__):
        importlib.import_module(f"{stages.__name__}.{module.name}")
    for kind in base.__subclasses__():
        if "stage" in vars(kind):
            yield kind
        yield from kinds(kind)


def fitted(stage: str, recipe: str, jobs: Sequence[Finished], runs_model: bool) -> tuple[Any, ...]:
    """A row: a line through seconds by work, and one through memory by size of the model; none falls."""
    work, gmacs, seconds, mb = (
        np.array([getattr(job, name) for job in jobs]) for name in ("work", "gmacs", "seconds", "mb")
    )
    times = line(*medians(work, seconds))
    fixed, rate = times or started(work, seconds)
    sizes = line(*medians(gmacs, mb))
    rise = MB_PER_GMAC if runs_model else 0.0
    base, slope = sizes or (float(mb.max()) - rise * float(gmacs[0]), rise)
    return (stage, recipe, len(jobs), *(float(f"{value:.4g}") for value in (fixed, rate, base, slope)))


def medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of y at each x."""
    found = pd.Series(y).groupby(np.round(x, 6)).median()
    return found.index.to_numpy(), found.to_numpy()


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Fixed part and rise of y over x by relative error; None where x hardly varies, or y would fall."""
    if np.ptp(x) <= 0.5 * x.max():
        return None
    weights = 1 / y
    fixed, rate = np.linalg.lstsq(np.stack([weights, x * weights], 1), y * weights, rcond=None)[0]
    return (float(fixed), float(rate)) if fixed > 0 and rate >= 0 else None


def started(work: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """Where one amount of work was measured: a job with a model needs time to start; the rest is work."""
    if not work.any():
        return float(np.median(seconds)), 0.0
    fixed = min(START_S, 0.9 * float(seconds.min()))
    return fixed, float(np.median((seconds - fixed) / work))


if __name__ == "__main__":
    run(lambda: tyro.cli(fit))
