"""Draw attention, the class token's or all tokens': overview of several images, and every head of one."""

from __future__ import annotations

from ptq2themoon.evaluate.attention_maps import read_label_names, read_maps
from ptq2themoon.plots.attention_figures import attention_heads, attention_overview
from ptq2themoon.plots.heatmap import check_maps
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.attention_weights import heads_table, overview_table
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.stages.figures import PlotAttention


def main(job: PlotAttention) -> None:
    check_maps(job.rows, job.colormap, job.dpi)
    paths = named_paths(job.maps, "--maps")
    with Stage.of(job) as stage:
        maps = {name: read_maps(path) for name, path in paths.items()}
        names = read_label_names(job.label_names) if job.label_names else None
        overview = attention_overview(maps, names, job.rows, job.colormap)
        save(overview, stage, job.out_overview_png, job.out_overview_svg, job.dpi)
        heads = attention_heads(maps, job.image_index, names, job.colormap)
        save(heads, stage, job.out_heads_png, job.out_heads_svg, job.dpi)
        if path := job.out_overview_csv:
            overview_table(maps, job.rows).to_csv(stage.temporary(path), index=False, float_format="%.6g")
        if path := job.out_heads_csv:
            table = heads_table(maps, job.image_index)
            table.to_csv(stage.temporary(path), index=False, float_format="%.6g")


if __name__ == "__main__":
    run_job(main, PlotAttention)
