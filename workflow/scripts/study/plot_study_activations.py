"""Draw the ranges of the layers' inputs by channel: of one block closely, and of all blocks."""

from __future__ import annotations

from ptq2themoon.plots.activations import (
    CHANNEL_COLUMNS,
    LARGEST_COLUMNS,
    activations,
    activations_block,
    of_block,
)
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyActivations


def main(job: PlotStudyActivations) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        channels = read_table(job.channels, CHANNEL_COLUMNS)
        largest = read_table(job.largest, LARGEST_COLUMNS)
        rows = of_block(channels, job.block)
        rows.to_csv(stage.temporary(job.out_block), index=False, float_format="%.5g")
        save(activations_block(rows, largest), stage, job.out_block_png, job.out_block_svg, job.dpi)
        save(activations(channels, largest), stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyActivations)
