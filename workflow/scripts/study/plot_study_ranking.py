"""Draw which places gain from per-channel scales, and how the recipe auto was found."""

from __future__ import annotations

from ptq2themoon.plots.ranking import RANKING_COLUMNS, SEARCH_COLUMNS, ranking
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyRanking


def main(job: PlotStudyRanking) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        table = read_table(job.ranking, RANKING_COLUMNS)
        search = read_table(job.search, SEARCH_COLUMNS)
        figure = ranking(table, search, job.name, read(job.bits_from, NarrowBits).narrow, job.share)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyRanking)
