"""Stage summarize: the metrics of every model in one table."""

from __future__ import annotations

from pathlib import Path

from ptq2themoon.deploy.deploy_records import DeployReport
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.summary import (
    headline,
    parse_entry,
    parse_runtime,
    summarize,
    to_html,
    to_markdown,
)
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.records import read, write_json
from ptq2themoon.vocabulary.stages.evaluate import Summarize

INT8 = Path(layout.INT8).name


def main(job: Summarize) -> None:
    entries = parse_runtime([parse_entry(values) for values in job.entry], job.runtime)
    with Stage.of(job) as stage:
        table = summarize(entries)
        table.to_csv(stage.temporary(job.out_csv), index=False, float_format="%.8g")
        stage.temporary(job.out_md).write_text(to_markdown(table), encoding="utf-8")
        reports = named_paths(job.ship, "--ship")
        ships = {
            run: (path.with_name(INT8), read(path, DeployReport).bytes.int8) for run, path in reports.items()
        }
        page = to_html(table, ships)
        stage.temporary(job.out_html).write_text(page, encoding="utf-8")
        for name, path in zip(layout.HEADLINES, job.out_headlines, strict=True):
            write_json(stage.temporary(path), headline(table, name))


if __name__ == "__main__":
    run_job(main, Summarize)
