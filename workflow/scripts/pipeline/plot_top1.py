"""Draw top-1 of full precision and of each recipe of one model; without top-1, the error of its output."""

from __future__ import annotations

from ptq2themoon.plots.output_error import output_error
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.plots.summary_rows import COLUMNS
from ptq2themoon.plots.top1 import has_accuracy, top1
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.figures import PlotTop1


def main(job: PlotTop1) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        table = read_table(job.summary, COLUMNS)
        draw = top1 if has_accuracy(table, job.model) else output_error
        figure = draw(table, job.model)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotTop1)
