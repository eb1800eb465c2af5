"""Draw accuracy of one model against the seconds of calibration."""

from __future__ import annotations

from ptq2themoon.plots.accuracy_by_bits import COLUMNS
from ptq2themoon.plots.accuracy_by_cost import COSTS, accuracy_by_cost
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.leaderboard import PlotAccuracyByCost


def main(job: PlotAccuracyByCost) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        figure = accuracy_by_cost(read_table(job.table, COLUMNS), read_table(job.costs, COSTS), job.model)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotAccuracyByCost)
