"""Every result that must exist, and what its sidecar must record, as the stages' declarations say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ptq2themoon.data import open_source
from ptq2themoon.safety.code_behind import code_sum
from ptq2themoon.vocabulary.data_free_layout import data_free_runs
from ptq2themoon.vocabulary.job import ANY, Job
from ptq2themoon.vocabulary.layout import Run, calibration_draws, fill, runs_of
from ptq2themoon.vocabulary.leaderboard_layout import rows_of, runs_of_row
from ptq2themoon.vocabulary.learning_curve_layout import curves_of
from ptq2themoon.vocabulary.onnx_data import written_data
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.stages import (
    data_free,
    figures,
    leaderboard,
    learning_curve,
    study,
    study_figures,
    study_tables,
)
from ptq2themoon.vocabulary.stages.calibrate import Calibrate
from ptq2themoon.vocabulary.stages.common import FILE_KINDS
from ptq2themoon.vocabulary.stages.deploy import Deploy, VerifyRuntime
from ptq2themoon.vocabulary.stages.evaluate import (
    AttentionMaps,
    Evaluate,
    OperatorErrors,
    Reference,
    Summarize,
)
from ptq2themoon.vocabulary.stages.graph import Fuse
from ptq2themoon.vocabulary.stages.origin import DrawCalibration, Export, ListEvaluation
from ptq2themoon.vocabulary.study_layout import PARTS, TABLES_OF, first_run
from ptq2themoon.vocabulary.study_parameters import BASE, CHANNELWISE
from ptq2themoon.vocabulary.times import times_of

Call = tuple[type[Job], Any]

# Stages of the study with one call per model: those that run the model, and those that show what they found.
MEASURING: tuple[type[Job], ...] = (
    study.StudyFusion,
    study.StudyBits,
    study.StudyAuto,
    study.StudyActivations,
    study.StudyErrors,
)
SHOWING: tuple[type[Job], ...] = (
    study_figures.PlotStudyRanking,
    study_figures.PlotStudyFusion,
    study_figures.PlotStudyActivations,
    study_figures.PlotStudyErrors,
    study_figures.PlotStudyAttention,
    study_figures.PlotRollout,
    study_tables.StudyFidelity,
)


@dataclass(frozen=True)
class Result:
    """One run of a stage as its sidecar must show it.

    Attributes:
        outputs: the main one, beside which the sidecar lies, first; each with the data that it says it has.
        device: where it computes; None when it computes on none, `ANY` when params.yaml leaves it open.
        code: sum of the modules that make it.
    """

    stage: str
    outputs: Sequence[Path]
    inputs: Sequence[Path]
    parameters: dict[str, Any]
    seed: int | None = None
    device: Any = None
    code: Any = ANY


def jobs_of(params: Params, study: bool = False, leaderboard: bool = False) -> list[Call]:
    """Every job of a run from scratch, each stage with its wildcards, once."""
    calls = [*_pipeline(params)]
    calls += _study(params) if study else []
    calls += _leaderboard(params) if leaderboard else []
    return list({fill(times_of(kind), wildcards): (kind, wildcards) for kind, wildcards in calls}.values())


def expected_results(params: Params) -> list[Result]:
    """All results of the pipeline, each after those that it is made from."""
    return [_result(params, *call) for call in _pipeline(params)]


def expected_study(params: Params) -> list[Result]:
    """All results of the study, each after those that it is made from; the pipeline's come before."""
    return [_result(params, *call) for call in _study(params)]


def expected_leaderboard(params: Params) -> list[Result]:
    """All results of the leaderboard, each after those that it is made from; the pipeline's come before."""
    return [_result(params, *call) for call in _leaderboard(params)]


def expected_learning_curve(params: Params) -> list[Result]:
    """All results of `snakemake learning_curve`, each after those that it is made from."""
    return [_result(params, *call) for call in _learning_curve(params)]


def expected_data_free(params: Params) -> list[Result]:
    """All results of `snakemake data_free`, each after those that it is made from."""
    return [_result(params, *call) for call in _data_free(params)]


def _result(params: Params, kind: type[Job], wildcards: Any) -> Result:
    job = kind.of(params, wildcards)
    parameters = job.parameters() | _listing(job) | dict.fromkeys(job.found_out(), ANY)
    device = getattr(job, "device", job.runs_on)
    return Result(
        job.stage,
        [file for path in job.outputs() for file in (path, *written_data(path))],
        job.inputs(),
        parameters,
        job.drawn_with(),
        ANY if device == "auto" else device,
        code_sum(job.stage, job.methods_called()),
    )


def _listing(job: Job) -> dict[str, Any]:
    """What is recorded of a folder of images: its listing."""
    if not isinstance(job, DrawCalibration | ListEvaluation) or job.kind in FILE_KINDS:
        return {}
    return open_source(job.kind, job.source, job.classes, job.class_order).identity()


def _pipeline(params: Params) -> Iterator[Call]:
    for model in params.models:
        yield from _of_model(params, model, runs_of(params, model))
    yield Summarize, None
    for model in params.models:
        for figure in (figures.PlotErrors, figures.PlotTop1, figures.PlotAttention):
            yield figure, Run(model)


def _of_model(params: Params, model: str, runs: Sequence[Run]) -> Iterator[Call]:
    yield Export, Run(model)
    for images, seed in calibration_draws(params):
        yield DrawCalibration, Run(model, images=images, seed=seed)
    yield Fuse, Run(model)
    yield ListEvaluation, Run(model)
    yield from ((Calibrate, run) for run in runs)
    yield Reference, Run(model)
    yield from ((kind, run) for kind in (OperatorErrors, Evaluate) for run in runs)
    yield from ((AttentionMaps, run) for run in (Run(model), *runs))
    for run in runs if params.deploy.modes else ():
        yield from ((Deploy, run.as_mode(mode)) for mode in params.deploy.modes)
        yield VerifyRuntime, run


def _study(params: Params) -> Iterator[Call]:
    yield study_figures.PlotStudyPublished, None
    for model in params.models:
        yield from _study_of_model(params, model)
    yield from ((kind, None) for kind in (study_tables.StudyModels, study_figures.PlotStudyModels))


def _study_of_model(params: Params, model: str) -> Iterator[Call]:
    settings, here = params.study, Run(model)
    for seed in settings.seeds:
        yield DrawCalibration, Run(model, images=settings.calibration_images, seed=seed)
    looked_at = study_tables.looked_at(params)
    for recipe in dict.fromkeys((BASE, CHANNELWISE, *looked_at)):
        yield Calibrate, first_run(params, model, recipe)
    seen = [first_run(params, model, recipe) for recipe in looked_at]
    yield from ((Evaluate, run) for run in seen)
    yield from ((kind, run) for kind in (AttentionMaps, study.StudyRollout) for run in (here, *seen))
    yield from ((kind, here) for kind in MEASURING)
    for width, part, seed in product(PARTS, PARTS["narrow"], settings.seeds):
        if part in PARTS[width]:
            yield study.StudyAblation, SimpleNamespace(model=model, width=width, part=part, seed=seed)
    for reading in TABLES_OF:
        yield study_tables.StudyTable, SimpleNamespace(model=model, reading=reading)
        yield study_figures.PlotStudyAblation, SimpleNamespace(model=model, reading=reading)
    yield from ((kind, here) for kind in SHOWING)


def _leaderboard(params: Params) -> Iterator[Call]:
    for model in params.models:
        for seed in params.leaderboard.seeds:
            yield DrawCalibration, Run(model, images=params.leaderboard.calibration_images, seed=seed)
        for row in rows_of(params, model):
            yield from ((Calibrate, run) for run in runs_of_row(params, row))
            yield leaderboard.LeaderboardRow, row
        for recipe in params.leaderboard.recipes:
            yield leaderboard.LeaderboardKernels, Run(model, recipe)
            yield leaderboard.LeaderboardCost, Run(model, recipe)
    yield from ((kind, None) for kind in (leaderboard.LeaderboardTables, leaderboard.LeaderboardPublished))
    for model in params.models:
        yield leaderboard.PlotAccuracyByBits, Run(model)
        yield leaderboard.PlotAccuracyBySize, Run(model)
        yield leaderboard.PlotAccuracyByCost, Run(model)


def _learning_curve(params: Params) -> Iterator[Call]:
    for model in params.models:
        for seed in params.learning_curve.seeds:
            yield DrawCalibration, Run(model, images=params.learning_curve.calibration_images, seed=seed)
        yield from ((learning_curve.LearningCurveRun, run) for run in curves_of(params, model))
        yield learning_curve.PlotAccuracyByIterations, Run(model)


def _data_free(params: Params) -> Iterator[Call]:
    for model in params.models:
        for seed in params.data_free.seeds:
            yield DrawCalibration, Run(model, images=params.data_free.calibration_images, seed=seed)
        yield from ((data_free.DataFreeRun, run) for run in data_free_runs(params, model))
        yield data_free.DataFreeTable, Run(model)
        yield data_free.PlotDataFree, Run(model)
