"""Stage leaderboard_row: what a recipe at some bits reaches with every seed, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec
from ptq2themoon.evaluate.evaluation_images import Evaluated, evaluated_images
from ptq2themoon.evaluate.metrics import ranked
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.evaluate.row_record import Drawn, Row, as_marks
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardRow


def main(job: LeaderboardRow) -> None:
    if not len(job.seeds) == len(job.qparams) == len(job.arrays):
        raise UserError("--seeds, --qparams and --arrays: give one of each for every seed")
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size, job.images)
        spec = attention_spec(fused.report.attention, job.block)
        whole = Reference.load(job.reference, reference_of(fused.sha256, job.manifest, spec))
        reference = whole.at(images.indices)
        found = [
            drawn(seed, fused, files, images, reference, spec, job.batch_size, device)
            for seed, *files in zip(job.seeds, job.qparams, job.arrays, strict=True)
        ]
        right = (
            marks_of(reference.output[:].numpy(), images)
            if reference.metrics(images).top1 is not None
            else None
        )
        row = Row(fp32_top1=reference.metrics(images).top1, fp32_right=right, draws=found)
        records.write(stage.temporary(job.out), row)


def drawn(
    seed: int,
    fused: FusedModel,
    files: Sequence[Path],
    images: Evaluated,
    reference: Reference,
    spec: AttentionSpec,
    batch_size: int,
    device: str,
) -> Drawn:
    """What the quantized model of one seed reaches."""
    fused.check_parameters(files)
    qparams = read_qparams(*files)
    model = simulated(qparams.model(fused.graph), device, source=fused.path)
    batches = reference.batches(batch_size)
    result = evaluate_quantized(model, images.batches, batches, spec, images.classifier, images.labelled)
    metrics = result.metrics.model_copy(update={"protocol": qparams.header.protocol})
    output = result.output.numpy()
    right = agreeing = None
    if metrics.top1 is not None:
        right = marks_of(output, images)
    if metrics.agreement is not None:
        agreeing = as_marks(ranked(output)[:, 0] == ranked(reference.output[:].numpy())[:, 0])
    return Drawn(seed=seed, metrics=metrics, right=right, agreeing=agreeing)


def marks_of(logits: np.ndarray, images: Evaluated) -> str:
    """Of each image whether its best class is its label."""
    return as_marks(ranked(logits)[:, 0] == np.array([row.label for row in images.batches.rows]))


if __name__ == "__main__":
    run_job(main, LeaderboardRow)
