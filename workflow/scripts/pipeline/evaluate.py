"""Stage evaluate: a quantized model's accuracy where there is any, and its error against the reference."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.evaluate.outputs import Reference, reference_of, save_simulated, simulation_of
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.stages.evaluate import Evaluate


def main(job: Evaluate) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        data, *kind, _ = evaluated_images(job.manifest, fused.info, source, job.batch_size)
        spec = attention_spec(fused.report.attention, job.block)
        reference = Reference.load(job.reference, reference_of(fused.sha256, job.manifest, spec))
        qparams = read_qparams(*job.qparams)
        model = simulated(qparams.model(fused.graph), device, source=fused.path)
        result = evaluate_quantized(model, data, reference.batches(job.batch_size), spec, *kind)
        result.attention.to_csv(stage.temporary(job.out_attention), index=False, float_format="%.8g")
        made_from = simulation_of(job.qparams, job.manifest)
        save_simulated(stage.temporary(job.out_simulated), result.output, made_from)
        metrics = result.metrics.model_copy(update={"protocol": qparams.header.protocol})
        records.write(stage.temporary(job.out), metrics)


if __name__ == "__main__":
    run_job(main, Evaluate)
