"""Draw calibration images with a seed, stratified over the classes, resized and cropped for one model."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, draw_calibration, open_source
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.origin import DrawCalibration


def main(job: DrawCalibration) -> None:
    preprocessing = Preprocessing.read(job.info)
    source = open_source(job.kind, job.source, job.classes, job.class_order)
    with Stage.of(job, extra=source.identity()) as stage:
        temporary = stage.temporary(job.out)
        report = draw_calibration(source, preprocessing, job.images, job.seed, temporary, job.threads)
    print(f"{job.out}: {report}")


if __name__ == "__main__":
    run_job(main, DrawCalibration)
