"""Stage attention_maps: attention of a few images, from the graph that was evaluated."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, few_images, open_source, read_manifest
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.attention import attention_spec, run_with_attention, save_maps
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.evaluate import AttentionMaps


def main(job: AttentionMaps) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        spec = attention_spec(fused.report.attention, job.block)
        preprocessing = Preprocessing.of(fused.info)
        few = few_images(source, read_manifest(job.manifest), job.images, job.manifest, preprocessing)
        model = load_model(fused, device, job.qparams)
        _, attention = run_with_attention(model, few.normalised, spec)
        save_maps(stage.temporary(job.out), few.pixels, attention, spec, job.recipe, few.labels, few.names)


if __name__ == "__main__":
    run_job(main, AttentionMaps)
