"""Stage study_models: every model's full precision and compared quantizers in one table."""

from __future__ import annotations

import pandas as pd

from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation import KEYS, METRICS
from ptq2themoon.study.model_table import model_rows, models_markdown
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.stages.study_tables import StudyModels


def main(job: StudyModels) -> None:
    if not len(job.models) == len(job.plain) == len(job.once):
        raise UserError("--models, --plain and --once: give one of each for every model")
    with Stage.of(job) as stage:
        rows = []
        for model, *paths in zip(job.models, job.plain, job.once, strict=True):
            rows += model_rows(model, *(read_table(path, [*KEYS, *METRICS]) for path in paths))
        found = pd.DataFrame(rows)
        found.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")
        published = read_table(job.published, ["model", "top1_full_precision", "top1_quantized_w8a8"])
        stage.temporary(job.out_md).write_text(models_markdown(found, published), encoding="utf-8")


if __name__ == "__main__":
    run_job(main, StudyModels)
