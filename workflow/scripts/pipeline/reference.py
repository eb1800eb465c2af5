"""Stage reference: what the model gives in floating point for all evaluation images; its accuracy, if any."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import Reference, floating_outputs, output_file, reference_of
from ptq2themoon.evaluate.shards import device_of, gathered
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.stages.evaluate import Reference as Job


def main(job: Job) -> None:
    device = device_of(job.parts) if job.parts else resolve_device(job.device)
    source = open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size)
        spec = attention_spec(fused.report.attention, job.block)
        made_from = reference_of(fused.sha256, job.manifest, spec)
        if job.parts:
            names = ("output", "attention")
            batches = gathered(job.parts, names, images, device, made_from, "reference_part")
        else:
            batches = floating_outputs(load_model(fused, device), images, spec)
        with output_file(stage.temporary(job.out_reference), len(images.indices), made_from) as file:
            for batch in batches:
                file.add(**batch)
        reference = Reference.load(stage.temporary(job.out_reference), made_from)
        records.write(stage.temporary(job.out), reference.metrics(images))


if __name__ == "__main__":
    run_job(main, Job)
