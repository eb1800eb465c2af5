"""Stage fuse: model.onnx to fused.onnx and fusion.json, logits checked on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.editing.onnx_run import run_onnx, tolerated, where_not_finite
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.fusion_record import fusion_report
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.graph.sources.onnx_files import one_line, read_graph
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.stages.graph import Fuse


def check_logits(original: Path, fused: onnx.ModelProto, images: np.ndarray) -> float:
    """Largest difference of a logit between the two graphs in ONNX Runtime."""
    expected = run_onnx(original, images, at_once=1)  # no image may change another's logits
    if not np.isfinite(expected).all():
        where = where_not_finite(read_graph(original), images)
        raise UserError(f"the model gives logits that are not finite on the calibration images{where}")
    difference = float(np.abs(run_onnx(fused, images) - expected).max())
    most = tolerated(expected)
    if not difference <= most:
        raise UserError(
            f"the fused graph's logits differ by {difference:.2g} (> {most:.2g}); nothing is written"
        )
    return difference


def main(job: Fuse) -> None:
    at_least(1, job.check_images, "--check-images")
    with Stage.of(job) as stage:
        preprocessing = Preprocessing.read(job.info)
        images = next(iter(calibration_batches(job.images, preprocessing, job.check_images))).numpy()
        original = read_graph(job.model)
        with one_line(job.model):
            try:
                fused, fusions = fuse(normalise(original))
            except UserError as error:
                raise UserError(f"{job.model}: {error}") from None
            operators, renamed = rename_operators(fused, find_roles(fused))
        if not any(operator.role == "softmax" for operator in operators):
            raise UserError(
                f"{job.model}: no transformer: no Softmax between two products of activations was found; "
                "give a Vision Transformer whose attention is plain operators"
            )
        difference = check_logits(job.model, fused, images)
        report = fusion_report(original, fused, fusions, operators, renamed, len(images), difference)
        write_model(fused, stage.temporary(job.out), job.out.name)
        records.write(stage.temporary(job.out_report), report)


if __name__ == "__main__":
    run_job(main, Fuse)
