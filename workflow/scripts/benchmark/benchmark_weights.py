"""Stage benchmark_weights: random weights of an architecture, and noise for images."""

from __future__ import annotations

from ptq2themoon.benchmark.random_models import random_images, random_weights
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkWeights


def main(job: BenchmarkWeights) -> None:
    with Stage.of(job) as stage:
        shape = random_weights(job.architecture, job.seed, stage.temporary(job.out))
        random_images(job.images, shape, job.seed, stage.temporary(job.out_images))


if __name__ == "__main__":
    run_job(main, BenchmarkWeights)
