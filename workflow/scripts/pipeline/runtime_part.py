"""Stage runtime_part: what INT8 models give in ONNX Runtime for one shard of the evaluation images."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.deploy.runtime_check import run_in_turn
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import runtime_of
from ptq2themoon.evaluate.shards import part_file
from ptq2themoon.graph.editing.onnx_run import runner, session
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.deploy import RuntimePart


def main(job: RuntimePart) -> None:
    source = open_source(job.kind, job.source)
    with Stage.of(job) as stage:
        info = FusedModel.open(job.model).info
        images = evaluated_images(job.manifest, info, source, job.batch_size, shard=job.shard)
        int8 = (runner(session(path, quantized=True, threads=job.threads)) for path in job.int8)
        runs = dict(zip(job.modes, int8, strict=True))
        made_from = runtime_of(job.int8, job.manifest)
        with part_file(stage.temporary(job.out), images, job.shard, "cpu", made_from) as file:
            for outputs, _ in run_in_turn(runs, images.batches):
                file.add(**outputs)


if __name__ == "__main__":
    run_job(main, RuntimePart)
