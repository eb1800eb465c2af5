"""Draw the error of every operator along the network, one series per recipe."""

from __future__ import annotations

from collections.abc import Sequence

from ptq2themoon.plots.errors_along_network import errors_along_network
from ptq2themoon.plots.network import COLUMNS, MODES
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.stages.figures import PlotErrors


def mode_images(values: Sequence[str]) -> dict[str, int]:
    """`["local=64", …]` -> `{"local": 64, …}`."""
    found = {}
    for value in values:
        mode, _, count = value.partition("=")
        if mode not in MODES:
            raise UserError(f"--mode-images {value}: unknown mode {mode!r}; {nearest(mode, MODES)}")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"--mode-images {value}: must read MODE=N, as in --mode-images local=64")
        found[mode] = int(count)
    return found


def main(job: PlotErrors) -> None:
    check_dpi(job.dpi)
    if job.worst < 0:
        raise UserError(f"--worst {job.worst}: must be 0 or more")
    paths, images = named_paths(job.table, "--table"), mode_images(job.mode_images)
    with Stage.of(job) as stage:
        tables = {name: read_table(path, COLUMNS) for name, path in paths.items()}
        figure = errors_along_network(tables, images, job.worst)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


if __name__ == "__main__":
    run_job(main, PlotErrors)
