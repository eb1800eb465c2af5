"""Draw one table of the ablation beside the study's published figures."""

from __future__ import annotations

from ptq2themoon.plots.ablation_bars import ABLATION_COLUMNS, ablation
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.names import READ_AS
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyAblation


def main(job: PlotStudyAblation) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        table = read_table(job.table, ABLATION_COLUMNS)
        title = f"What {job.name} needs per channel\n{READ_AS[job.variant]}"
        figure = ablation(table, title)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyAblation)
