"""Stage benchmark_stretch: a model's weights with outlier channels, its function as before."""

from __future__ import annotations

from safetensors.torch import save_file

from ptq2themoon.benchmark.outlier_channels import stretch
from ptq2themoon.graph.sources.timm_model import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkStretch


def main(job: BenchmarkStretch) -> None:
    with Stage.of(job) as stage:
        model = load_model(job.where_from())
        stretch(model, job.seed)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, stage.temporary(job.out))


if __name__ == "__main__":
    run_job(main, BenchmarkStretch)
