"""Draw attention rollout of several images, and write the numbers drawn; or say why the model has none."""

from __future__ import annotations

from ptq2themoon.evaluate.attention_maps import read_label_names, read_rollout
from ptq2themoon.plots.heatmap import check_maps
from ptq2themoon.plots.rollout_figure import attention_rollout
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.attention_weights import rollout_table
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.stages.study_figures import PlotRollout


def main(job: PlotRollout) -> None:
    check_maps(job.rows, job.colormap, job.dpi)
    paths = named_paths(job.maps, "--maps")
    with Stage.of(job) as stage:
        rollouts = {name: read_rollout(path) for name, path in paths.items()}
        names = read_label_names(job.label_names) if job.label_names else None
        table = rollout_table(rollouts, job.rows)
        table.to_csv(stage.temporary(job.out_csv), index=False, float_format="%.6g")
        figure = attention_rollout(rollouts, names, job.rows, job.colormap)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotRollout)
