"""Stage study_rollout: attention rollout over all blocks, of a few images; or why the model has none."""

from __future__ import annotations

from ptq2themoon.data import Preprocessing, few_images, open_source, read_manifest
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.attention import attention_specs
from ptq2themoon.evaluate.rollout import run_with_rollout, save_rollout, why_undefined
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.stages.study import StudyRollout


def main(job: StudyRollout) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        specs = attention_specs(fused.report.attention)
        preprocessing = Preprocessing.of(fused.info)
        few = few_images(source, read_manifest(job.manifest), job.images, job.manifest, preprocessing)
        found = None
        if not why_undefined(specs):
            model = load_model(fused, device, job.qparams)
            found = run_with_rollout(model, few.normalised, specs)
        save_rollout(stage.temporary(job.out), few, found, specs, job.recipe)


if __name__ == "__main__":
    run_job(main, StudyRollout)
