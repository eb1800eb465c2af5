"""Stage evaluate: a quantized model's accuracy where there is any, and its error against the reference."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import compared, measured, passing
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import Reference, output_file, reference_of, simulation_of
from ptq2themoon.evaluate.shards import comparison_of, device_of, gathered_comparison
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.stages.evaluate import Evaluate


def main(job: Evaluate) -> None:
    device = device_of(job.parts) if job.parts else resolve_device(job.device)
    source = open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size)
        spec = attention_spec(fused.report.attention, job.block)
        reference = Reference.load(job.reference, reference_of(fused.sha256, job.manifest, spec))
        qparams = read_qparams(*job.qparams)
        if job.parts:
            made_from = comparison_of(job.qparams, job.manifest, job.reference)
            batches = gathered_comparison(job.parts, images, reference, device, made_from)
        else:
            model = simulated(qparams.model(fused.graph), device, source=fused.path)
            batches = compared(model, images.batches, reference.batches(job.batch_size), spec)
        made_from = simulation_of(job.qparams, job.manifest)
        with output_file(stage.temporary(job.out_simulated), len(images.indices), made_from) as file:
            kept = passing(batches, lambda output: file.add(output=output))
            metrics, attention = measured(kept, spec.query, images.classifier, images.labelled)
        attention.to_csv(stage.temporary(job.out_attention), index=False, float_format="%.8g")
        metrics = metrics.model_copy(update={"protocol": qparams.header.protocol})
        records.write(stage.temporary(job.out), metrics)


if __name__ == "__main__":
    run_job(main, Evaluate)
