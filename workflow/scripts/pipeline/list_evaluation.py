"""List the images that a model is evaluated on, each decoded once to see that it can be."""

from __future__ import annotations

from ptq2themoon.data import (
    Preprocessing,
    list_evaluation,
    open_source,
    write_manifest,
)
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.origin import ListEvaluation


def main(job: ListEvaluation) -> None:
    info = read(job.info, ModelInfo)
    source = open_source(job.kind, job.source, job.classes, job.class_order)
    with Stage.of(job, extra=source.identity()) as stage:
        rows, report = list_evaluation(
            source, info.num_classes, job.most, job.threads, Preprocessing.of(info)
        )
        write_manifest(stage.temporary(job.out), rows)
    print(f"{job.out}: {report}")


if __name__ == "__main__":
    run_job(main, ListEvaluation)
