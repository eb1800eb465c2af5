"""Stage study_fusion: operators and time an image, with and without fusion, in two executors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import torch

from ptq2themoon.benchmark.fusion import (
    COLUMNS,
    COUNTS,
    WITH,
    WITHOUT,
    Form,
    comparison,
    contestants,
    operator_counts,
    same_logits,
    without_fusion,
)
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.study import StudyFusion


def main(job: StudyFusion) -> None:
    for option in ("calibration_count", "rounds", "threads"):
        at_least(1, getattr(job, option), f"--{option.replace('_', '-')}")
    torch.set_num_threads(job.threads)
    recipe, bits = load_recipe(job.recipe), parse_bits(job.bits)
    facts = machine(job.threads, ("torch", "onnxruntime", "ppq"))
    with (
        Stage.of(job, extra={"machine": facts, "threads": job.threads}) as stage,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary)
        fused = FusedModel.open(job.model)
        preprocessing = Preprocessing.of(fused.info)
        images = next(iter(calibration_batches(job.images, preprocessing, job.calibration_count))).numpy()
        write_model(without_fusion(job.model / "model.onnx"), folder / "model.onnx")
        paths = {WITHOUT: folder / "model.onnx", WITH: fused.path}
        forms = [Form(fusion, path, recipe, bits, images) for fusion, path in paths.items()]
        logits = same_logits(forms)
        found = contestants(forms, job.bits, job.threads, folder)
        table = pd.DataFrame(comparison(found, images, logits, job.rounds))
        table = table.assign(model=job.name, threads=job.threads, rounds=job.rounds)
        table = table.reindex(columns=COLUMNS).astype(dict.fromkeys(COUNTS, "Int64"))
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.6g")
        operator_counts(forms).to_csv(stage.temporary(job.out_operators), index=False)


if __name__ == "__main__":
    run_job(main, StudyFusion)
