"""Stage study_bits: the first bits at which a recipe loses more than so many points."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation import lost
from ptq2themoon.study.ablation_runs import Bench
from ptq2themoon.study.bits_record import NarrowBits, Tried
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.study import StudyBits


def main(job: StudyBits) -> None:
    for bits in job.bits:
        parse_bits(bits)
    recipe = load_recipe(job.recipe)
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        bench = Bench.open(job, source, device)
        floating = bench.reference.metrics(bench.images)
        tried = []
        for bits in job.bits:
            measure, points = lost(bench.metrics(recipe, bits), floating)
            tried.append(Tried(bits=bits, measure=measure, lost=points))
            if points > job.loss:
                break
        found = NarrowBits(narrow=bits, loses_more=points > job.loss, loss=job.loss, tried=tried)
        records.write(stage.temporary(job.out), found)
        records.write(stage.temporary(job.out_metrics), floating)


if __name__ == "__main__":
    run_job(main, StudyBits)
