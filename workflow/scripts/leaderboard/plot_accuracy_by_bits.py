"""Draw accuracy of one model against bits, one line per recipe."""

from __future__ import annotations

from ptq2themoon.plots.accuracy_by_bits import COLUMNS, accuracy_by_bits
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.leaderboard import PlotAccuracyByBits


def main(job: PlotAccuracyByBits) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        figure = accuracy_by_bits(read_table(job.table, COLUMNS), job.model)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotAccuracyByBits)
