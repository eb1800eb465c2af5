"""Draw time an image with and without fusion, and the operators of each type."""

from __future__ import annotations

from ptq2themoon.plots.fusion_times import COLUMNS, OPERATOR_COLUMNS, fusion
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyFusion


def main(job: PlotStudyFusion) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        times, operators = read_table(job.table, COLUMNS), read_table(job.operators, OPERATOR_COLUMNS)
        save(fusion(times, operators), stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyFusion)
