"""Stage benchmark_tables: the tables of all models in one each, and a page of them."""

from __future__ import annotations

import json

from ptq2themoon.benchmark.speed_tables import document
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_rows import read_csv, write_csv
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkTables


def main(job: BenchmarkTables) -> None:
    with Stage.of(job) as stage:
        machines = [json.loads(path.read_text(encoding="utf-8")) for path in job.machine]
        tables = {}
        for out in job.out_tables:
            rows = [row for path in job.table if path.name == out.name for row in read_csv(path)]
            tables[out.stem] = rows
            write_csv(stage.temporary(out), list(rows[0]), rows)
        stage.temporary(job.out_md).write_text(document(machines, tables), encoding="utf-8")


if __name__ == "__main__":
    run_job(main, BenchmarkTables)
