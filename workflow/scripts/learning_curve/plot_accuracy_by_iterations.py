"""Draw accuracy of one model against iterations."""

from __future__ import annotations

import pandas as pd

from ptq2themoon.plots.accuracy_by_iterations import accuracy_by_iterations
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.learning_curve_layout import CURVE_COLUMNS
from ptq2themoon.vocabulary.stages.learning_curve import PlotAccuracyByIterations


def main(job: PlotAccuracyByIterations) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        curves = pd.concat([read_table(path, CURVE_COLUMNS) for path in job.curves], ignore_index=True)
        save(accuracy_by_iterations(curves, job.model), stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotAccuracyByIterations)
