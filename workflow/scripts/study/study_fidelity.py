"""Stage study_fidelity: how near each recipe's attention keeps to full precision's, over all images."""

from __future__ import annotations

from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.graph.meaning.fusion_record import FusionReport
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.attention_fidelity import NEEDED, fidelity_markdown, fidelity_table
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.study_tables import StudyFidelity


def main(job: StudyFidelity) -> None:
    paths = named_paths(job.table, "--table")
    with Stage.of(job) as stage:
        spec = attention_spec(read(job.fusion, FusionReport).attention, job.block)
        tables = {name: read_table(path, NEEDED) for name, path in paths.items()}
        found = fidelity_table(tables, job.bits, spec)
        found.to_csv(stage.temporary(job.out_csv), index=False, float_format="%.6g")
        stage.temporary(job.out_md).write_text(fidelity_markdown(found, spec), encoding="utf-8")


if __name__ == "__main__":
    run_job(main, StudyFidelity)
