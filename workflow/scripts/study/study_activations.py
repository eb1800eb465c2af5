"""Stage study_activations: minimum and maximum of each channel of the layers' inputs, in floating point."""

from __future__ import annotations

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.evaluation_images import evaluated_images
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.layer_inputs import Ranges, capture_inputs, channel_table, largest_table, read_layers
from ptq2themoon.vocabulary.stages.study import StudyActivations


def main(job: StudyActivations) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model)
        batches = evaluated_images(job.manifest, fused.info, source, job.batch_size, job.images).batches
        found, ranges = read_layers(fused), Ranges()
        images = (x for x, _ in batches)
        capture_inputs(load_model(fused, device), images, found.layers, ranges.see)
        channels = channel_table(ranges)
        channels.to_csv(stage.temporary(job.out), index=False, float_format="%.5g")
        largest = largest_table(ranges, len(batches.rows), found.note)
        largest.to_csv(stage.temporary(job.out_largest), index=False, float_format="%.6g")


if __name__ == "__main__":
    run_job(main, StudyActivations)
