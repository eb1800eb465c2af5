"""Stage data_free_table: the means of all sources in one table."""

from __future__ import annotations

from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.source_means import COLUMNS, data_free
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.stages.data_free import DataFreeTable


def main(job: DataFreeTable) -> None:
    sources = {name: str(recipe) for name, recipe in named_paths(job.sources, "--sources").items()}
    with Stage.of(job) as stage:
        table = data_free([read_table(path, COLUMNS) for path in job.runs], sources)
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")


if __name__ == "__main__":
    run_job(main, DataFreeTable)
