"""Stage reference_part: what the model gives in floating point for one shard of the evaluation images."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import floating_outputs, reference_of
from ptq2themoon.evaluate.shards import part_file
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.evaluate import ReferencePart


def main(job: ReferencePart) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size, shard=job.shard)
        spec = attention_spec(fused.report.attention, job.block)
        made_from = reference_of(fused.sha256, job.manifest, spec)
        with part_file(stage.temporary(job.out), images, job.shard, device, made_from) as file:
            for batch in floating_outputs(load_model(fused, device), images, spec):
                file.add(**batch)


if __name__ == "__main__":
    run_job(main, ReferencePart)
