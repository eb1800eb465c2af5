"""Stage study_ablation: calibrate and evaluate several recipes on the same images, one row each."""

from __future__ import annotations

import pandas as pd

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation import METRICS, RUN
from ptq2themoon.study.ablation_runs import Bench
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.study import StudyAblation


def main(job: StudyAblation) -> None:
    if (job.bits is None) == (job.bits_from is None):
        raise UserError("--bits or --bits-from: give one of them")
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    bits = job.bits or read(job.bits_from, NarrowBits).narrow
    recipes = [load_recipe(path, [parse_bits(bits)]) for path in job.recipes]
    with Stage.of(job, device=device, extra={"bits": bits}) as stage:
        bench = Bench.open(job, source, device)
        variants = [bench.subject.read_as(recipe, job.variant) for recipe in recipes]
        for recipe in variants:
            bench.subject.plan(recipe, bits)  # what does not fit the model is named before any is computed
        rows = []
        for recipe in variants:
            metrics = bench.metrics(recipe, bits, job.seed)
            drawn = bench.calibration.images, job.seed, metrics.images
            figures = (getattr(metrics, name) for name in METRICS)
            rows.append((recipe.name, bits, job.variant, *drawn, *figures))
        table = pd.DataFrame(rows, columns=RUN)
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")


if __name__ == "__main__":
    run_job(main, StudyAblation)
