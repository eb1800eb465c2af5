"""Stage operator_errors: the error of every quantized operator, three ways; how stable their ranking is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ptq2themoon.data import Preprocessing, batches, open_source, read_manifest, spread
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.error_meter import FIGURES
from ptq2themoon.evaluate.operator_errors import (
    error_table,
    logits_errors,
    output_errors,
    ranking,
)
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import write_json
from ptq2themoon.vocabulary.stages.evaluate import OperatorErrors


def main(job: OperatorErrors) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused, manifest = FusedModel.open(job.model, job.qparams), read_manifest(job.manifest)
        everywhere = range(len(manifest))
        of_outputs = spread(everywhere, job.images, "--images", job.manifest)
        of_logits = spread(everywhere, job.logits_images, "--logits-images", job.manifest)
        preprocessing, at_once = Preprocessing.of(fused.info), fused.at_once(job.batch_size)

        def images(indices: Sequence[int]) -> Iterator[Tensor]:
            rows = [manifest[index] for index in indices]
            return (x for x, _ in batches(rows, source, preprocessing, at_once))

        whole = Reference.load(job.reference, reference_of(fused.sha256, job.manifest))
        known = whole.at(of_logits).batches(at_once)
        quantized = read_qparams(*job.qparams).model(fused.graph)
        model = simulated(quantized, device, source=fused.path)
        floating = SimulatedModel(quantized.rewritten, device, source=fused.path)
        accumulated, local = output_errors(model, floating, images(of_outputs))
        logits = logits_errors(model, floating, images(of_logits), [output for output, _ in known])
        operators = pd.DataFrame([operator._asdict() for operator in quantized.operators])
        operators = operators.rename(columns={"name": "operator"}).astype({"block": "Int64"})
        modes = {"accumulated": accumulated, "local": local, "logits": logits}
        table = pd.concat([error_table(meters, mode, operators) for mode, meters in modes.items()])
        refuse_nonsense(table, fused.path)
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")
        write_json(stage.temporary(job.out_ranking), ranking(logits))


def refuse_nonsense(table: pd.DataFrame, graph: Path) -> None:
    """The error of a value that is no number is none either."""
    for row in table[~np.isfinite(table[list(FIGURES)]).all(axis=1)].itertuples():
        raise UserError(f"{graph}: operator {row.operator!r}: its {row.mode} error is not finite")


if __name__ == "__main__":
    run_job(main, OperatorErrors)
