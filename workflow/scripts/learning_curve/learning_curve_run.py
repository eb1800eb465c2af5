"""Stage learning_curve_run: a recipe's methods trained for each number of iterations, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.methods import method_class
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation_runs import Bench
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.learning_curve_layout import CURVE_COLUMNS
from ptq2themoon.vocabulary.recipe_language import MethodCall
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe
from ptq2themoon.vocabulary.stages.learning_curve import LearningCurveRun
from ptq2themoon.vocabulary.training_settings import TrainingSettings


def main(job: LearningCurveRun) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    recipe = load_recipe(job.recipe, [parse_bits(job.bits)])
    with Stage.of(job, device=device) as stage:
        bench, rows = Bench.open(job, source, device), []
        for iterations in job.iterations:
            found = bench.metrics(trained_for(recipe, iterations), job.bits, job.seed)
            rows.append(
                {
                    "recipe": recipe.name,
                    "bits": job.bits,
                    "calibration_images": bench.calibration.images,
                    "seed": job.seed,
                    "iterations": iterations,
                    "images": found.images,
                    "fp32_top1": bench.reference.metrics(bench.images).top1,
                    "top1": found.top1,
                    "agreement": found.agreement,
                    "logits_sqnr_db": found.logits_sqnr_db,
                }
            )
        table = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")


def trained_for(recipe: Recipe, iterations: int) -> Recipe:
    """The recipe with this many iterations for each of its methods that trains.

    Raises:
        UserError: a recipe without such a method.
    """
    trains = [issubclass(method_class(call.name).Settings, TrainingSettings) for call in recipe.methods]
    if not any(trains):
        raise UserError(f"recipe {recipe.name!r}: no method of it trains; name another one")
    calls = [
        MethodCall(name=call.name, **{**call.settings, "iterations": iterations}) if learns else call
        for call, learns in zip(recipe.methods, trains, strict=True)
    ]
    return replace(recipe, methods=calls)


if __name__ == "__main__":
    run_job(main, LearningCurveRun)
