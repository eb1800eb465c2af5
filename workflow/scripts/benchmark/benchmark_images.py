"""Stage benchmark_images: the evaluation images as one file, which needs no decoder and no torch."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, open_source, read_manifest, spread, write_images
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkImages


def main(job: BenchmarkImages) -> None:
    source = open_source(job.kind, job.source)
    with Stage.of(job) as stage:
        preprocessing = Preprocessing.read(job.info)
        rows = read_manifest(job.manifest)
        rows = spread(rows, min(job.images, len(rows)), "--images", job.manifest)
        found = (
            (source.pixels(row.source, preprocessing), row.label, place) for place, row in enumerate(rows)
        )
        write_images(stage.temporary(job.out), found, [len(rows), *preprocessing.input_size], {})


if __name__ == "__main__":
    run_job(main, BenchmarkImages)
