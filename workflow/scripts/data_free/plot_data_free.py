"""Draw sources of calibration images beside what they reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ptq2themoon.plots.calibration_sources import data_free
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.source_means import TABLE
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.job import named_paths
from ptq2themoon.vocabulary.stages.data_free import PlotDataFree


def main(job: PlotDataFree) -> None:
    check_dpi(job.dpi)
    at_least(1, job.shown, "--shown")
    images = named_paths(job.images, "--images")
    with Stage.of(job) as stage:
        pixels = {name: read(path)[: job.shown] for name, path in images.items()}
        figure = data_free(read_table(job.table, TABLE), pixels, job.model)
        save(figure, stage, job.out_png, job.out_svg, job.dpi)


def read(path: Path) -> npt.NDArray[np.uint8]:
    """The images as they are shown, uint8 [N, C, H, W]."""
    try:
        with safe_open(path, framework="numpy") as file:
            pixels: npt.NDArray[np.uint8] = file.get_tensor("pixels")
    except SafetensorError as error:
        raise UserError(f"{path}: not images of data_free_run ({error}); run that stage again") from error
    return pixels


if __name__ == "__main__":
    run_job(main, PlotDataFree)
