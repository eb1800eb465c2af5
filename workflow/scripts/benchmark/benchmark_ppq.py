"""Stage benchmark_ppq: PPQ's own INT8 file for ONNX Runtime, of the same model and images.

Where PPQ fails the file is empty: the others are compared all the same.
"""

from __future__ import annotations

from ptq2themoon.benchmark.ppq_export import export
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkPpq


def main(job: BenchmarkPpq) -> None:
    with Stage.of(job) as stage:
        preprocessing = Preprocessing.read(job.info)
        batches = list(calibration_batches(job.images, preprocessing, 1))
        try:
            export(job.model, batches, stage.temporary(job.out))
        except UserError as error:
            print(error)
            stage.temporary(job.out).write_bytes(b"")


if __name__ == "__main__":
    run_job(main, BenchmarkPpq)
