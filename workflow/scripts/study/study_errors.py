"""Stage study_errors: what per-tensor and per-channel scales do to the layers' inputs."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, batches, open_source, read_manifest, spread
from ptq2themoon.device import resolve_device
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.input_errors import InputErrors, averages, input_tensors
from ptq2themoon.study.layer_inputs import capture_inputs, read_layers
from ptq2themoon.study.names import PER_CHANNEL, PER_TENSOR, block_index
from ptq2themoon.vocabulary.stages.study import StudyErrors


def main(job: StudyErrors) -> None:
    qparams = {PER_TENSOR: job.per_tensor, PER_CHANNEL: job.per_channel}
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        manifest = read_manifest(job.manifest)
        rows = spread(manifest, min(job.images, len(manifest)), "--images", job.manifest)
        fused = FusedModel.open(job.model)
        for pair in qparams.values():
            fused.check_parameters(pair)
        found = read_layers(fused)
        block = block_index(job.block, found.blocks, "study.block")
        tensors = {name: input_tensors(pair, found.layers, name) for name, pair in qparams.items()}
        errors = InputErrors(tensors, device)
        images = (x for x, _ in batches(rows, source, Preprocessing.of(fused.info), job.batch_size))
        capture_inputs(load_model(fused, device), images, found.layers, errors.see)
        table = errors.table(found.note)
        tables = {
            job.out: table,
            job.out_average: averages(table),
            job.out_histograms: errors.histograms(),
            job.out_channels: errors.channels(block),
        }
        for path, each in tables.items():
            each.to_csv(stage.temporary(path), index=False, float_format="%.6g")


if __name__ == "__main__":
    run_job(main, StudyErrors)
