"""Draw the errors of the layers' inputs: by block, averaged, and as histograms over channels."""

from __future__ import annotations

from ptq2themoon.plots.input_error_figures import (
    AVERAGE_COLUMNS,
    ERROR_COLUMNS,
    HISTOGRAM_COLUMNS,
    error_histograms,
    errors_average,
    errors_by_block,
)
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyErrors


def main(job: PlotStudyErrors) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        histograms = read_table(job.histograms, HISTOGRAM_COLUMNS)
        save(errors_by_block(read_table(job.errors, ERROR_COLUMNS)), stage, *job.out, job.dpi)
        average = errors_average(read_table(job.average, AVERAGE_COLUMNS))
        save(average, stage, *job.out_average, job.dpi)
        save(error_histograms(histograms), stage, *job.out_histograms, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyErrors)
