"""Stage study_table: the ablation's runs as means over seeds, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation import RUN, in_order, means, with_references
from ptq2themoon.study.ablation_tables import ablation_markdown
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.study_tables import StudyTable


def read_runs(paths: Sequence[Path]) -> pd.DataFrame:
    """All rows; each recipe must be there once for its bits and seed."""
    runs = pd.concat([read_table(path, RUN) for path in paths], ignore_index=True)
    double = runs[runs.duplicated(["recipe", "bits", "seed"])]
    if not double.empty:
        row = double.iloc[0]
        raise UserError(f"--runs: {row.recipe}, {row.bits}, seed {row.seed}: given twice")
    return runs


def main(job: StudyTable) -> None:
    with Stage.of(job) as stage:
        runs = read_runs(job.runs)
        if job.plain:
            plain = read_runs(job.plain)
            runs = pd.concat([runs, plain[~plain["recipe"].isin(runs["recipe"])]], ignore_index=True)
        table = with_references(
            in_order(means(runs.assign(variant=job.variant)), job.recipes),
            read(job.metrics, Metrics),
            read_table(job.published, ["recipe", "top1"]),
        )
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")
        text = ablation_markdown(table, job.name, job.variant)
        stage.temporary(job.out_md).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_job(main, StudyTable)
