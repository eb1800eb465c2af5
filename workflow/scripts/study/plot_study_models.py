"""Draw every model's full precision and compared quantizers."""

from __future__ import annotations

from ptq2themoon.plots.models import MODELS_COLUMNS, models
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyModels


def main(job: PlotStudyModels) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        figure = models(read_table(job.table, MODELS_COLUMNS))
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyModels)
