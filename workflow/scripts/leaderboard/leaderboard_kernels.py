"""Stage leaderboard_kernels: what of a recipe runs on integer kernels at each bits, and what does not."""

from __future__ import annotations

import pandas as pd

from ptq2themoon.deploy.kernels import COLUMNS, kernels
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.methods import labelled
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipe_language import MethodCall
from ptq2themoon.vocabulary.stages.leaderboard import LeaderboardKernels


def main(job: LeaderboardKernels) -> None:
    if not len(job.bits) == len(job.qparams) == len(job.arrays):
        raise UserError("--bits, --qparams and --arrays: give one of each for every bits")
    with Stage.of(job) as stage:
        fused, rows = FusedModel.open(job.model), []
        for bits, *files in zip(job.bits, job.qparams, job.arrays, strict=True):
            fused.check_parameters(files)
            qparams = read_qparams(*files)
            methods = [labelled(MethodCall(**method)) for method in qparams.header.methods]
            rows.append({"bits": bits, **kernels(qparams.model(fused.graph), methods, fused.path)})
        table = pd.DataFrame(rows, columns=["bits", *COLUMNS])
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")


if __name__ == "__main__":
    run_job(main, LeaderboardKernels)
