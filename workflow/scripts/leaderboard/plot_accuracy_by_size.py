"""Draw accuracy of one model against the size of its parameters, one line per recipe."""

from __future__ import annotations

from ptq2themoon.plots.accuracy_by_size import SIZED, accuracy_by_size
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.leaderboard import PlotAccuracyBySize


def main(job: PlotAccuracyBySize) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        parameters = read(job.info, ModelInfo).parameters
        figure = accuracy_by_size(read_table(job.table, SIZED), job.model, parameters)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotAccuracyBySize)
