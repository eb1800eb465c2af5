"""Stage summarize: the metrics of every model in one table."""

from __future__ import annotations

from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.summary import parse_entry, parse_runtime, summarize, to_markdown, to_nested
from ptq2themoon.vocabulary.records import write_json
from ptq2themoon.vocabulary.stages.evaluate import Summarize


def main(job: Summarize) -> None:
    entries = parse_runtime([parse_entry(values) for values in job.entry], job.runtime)
    with Stage.of(job) as stage:
        table = summarize(entries)
        table.to_csv(stage.temporary(job.out_csv), index=False, float_format="%.8g")
        stage.temporary(job.out_md).write_text(to_markdown(table), encoding="utf-8")
        write_json(stage.temporary(job.out_json), to_nested(table))


if __name__ == "__main__":
    run_job(main, Summarize)
