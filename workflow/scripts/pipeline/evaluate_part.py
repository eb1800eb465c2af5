"""Stage evaluate_part: what a quantized model gives for one shard of the evaluation images."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import compared
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.evaluate.shards import comparison_of, part_file
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.evaluate import EvaluatePart


def main(job: EvaluatePart) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size, shard=job.shard)
        spec = attention_spec(fused.report.attention, job.block)
        whole = Reference.load(job.reference, reference_of(fused.sha256, job.manifest, spec))
        known = whole.at(images.indices).batches(job.batch_size)
        model = simulated(read_qparams(*job.qparams).model(fused.graph), device, source=fused.path)
        made_from = comparison_of(job.qparams, job.manifest, job.reference)
        with part_file(stage.temporary(job.out), images, job.shard, device, made_from) as file:
            for batch in compared(model, images.batches, known, spec):
                file.add(output=batch.output, cosine=batch.cosine, kl=batch.kl)


if __name__ == "__main__":
    run_job(main, EvaluatePart)
