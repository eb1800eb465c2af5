"""Draw what the study itself printed, errors by block and times of fusion, in the form of ours."""

from __future__ import annotations

from ptq2themoon.plots.fusion_times import SECONDS, fusion_published
from ptq2themoon.plots.input_error_figures import PUBLISHED_COLUMNS, as_printed, errors_by_block
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyPublished

ORIGIN = "As the study printed it: ViT-Base, W8A8, ImageNet; not measured here."


def main(job: PlotStudyPublished) -> None:
    check_dpi(job.dpi)
    with Stage.of(job) as stage:
        errors = as_printed(read_table(job.errors, PUBLISHED_COLUMNS))
        times = read_table(job.models, ["model", *SECONDS])[["model", *SECONDS]]
        figures = errors_by_block(errors, ORIGIN), fusion_published(times)
        for paths, table, figure in zip(
            (job.out_errors, job.out_fusion), (errors, times), figures, strict=True
        ):
            png, svg, csv = paths
            table.to_csv(stage.temporary(csv), index=False, float_format="%.8g")
            save(figure, stage, png, svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotStudyPublished)
