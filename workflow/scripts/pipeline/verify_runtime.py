"""Stage verify_runtime: an INT8 model in ONNX Runtime against its simulation, whole and by operator."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.data import batches, open_source
from ptq2themoon.deploy.compare import compare
from ptq2themoon.deploy.deploy_records import DeployReport, RuntimeMetrics, RuntimeReport
from ptq2themoon.deploy.deploy_report import Placement
from ptq2themoon.deploy.runtime_check import compare_runs, operator_table, run_in_turn, verdict
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.evaluation_images import Evaluated, evaluated_images
from ptq2themoon.evaluate.outputs import Reference, load_simulated, reference_of, runtime_of, simulation_of
from ptq2themoon.evaluate.shards import gathered
from ptq2themoon.graph.editing.onnx_run import integer_products, product_kernels, runner, session
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.modes import Mode
from ptq2themoon.vocabulary.stages.deploy import VerifyRuntime


def main(job: VerifyRuntime) -> None:
    at_least(1, job.operator_images, "--operator-images")
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    with Stage.of(job, device=device) as stage:
        fused = FusedModel.open(job.model, job.qparams)
        evaluated = evaluated_images(job.manifest, fused.info, source, job.batch_size)
        data, *kind, _ = evaluated
        model = read_qparams(*job.qparams).model(fused.graph)
        quantized, simulation = model.quantized, simulated(model, device)
        reports = read_reports(job.deployed, job.int8, fused, job.qparams[0])
        reference = Reference.load(job.reference, reference_of(fused.sha256, job.manifest)).output
        expected = load_simulated(job.simulated, simulation_of(job.qparams, job.manifest))
        metrics = compare_runs(runtime_outputs(job, list(reports), evaluated), expected, reference, *kind)
        some = fused.at_once(job.operator_images)
        few = batches(data.rows[:some], source, data.preprocessing, some)
        images = torch.cat([images for images, _ in few])
        found: dict[Mode, RuntimeMetrics] = {}
        tables = []
        for (mode, report), path in zip(reports.items(), job.int8, strict=True):
            differences = compare(model.edited, quantized, simulation, images, mode)
            with tempfile.TemporaryDirectory() as folder:
                kernels = product_kernels(path, Path(folder), quantized=True)
            judged = verdict(metrics[mode], differences, mode)
            found[mode] = RuntimeMetrics(**metrics[mode], **judged, kernels=kernels)
            places = {entry.name: Placement(entry.runs, entry.why) for entry in report.operators}
            tables.append(operator_table(differences, (item.operator for item in quantized), places))
        table = pd.concat(tables, ignore_index=True)
        table.to_csv(stage.temporary(job.out_operators), index=False, float_format="%.8g")
        records.write(stage.temporary(job.out), RuntimeReport(runtime="ONNX Runtime", **found))
    for mode, path in zip(found, job.int8, strict=True):
        warn(path, found[mode], reports[mode].products.integer)


def runtime_outputs(
    job: VerifyRuntime, modes: Sequence[Mode], images: Evaluated
) -> Iterator[tuple[dict[Mode, Tensor], Tensor]]:
    """Output of every mode's model, and labels, of each batch: run here, or by shards."""
    if job.parts:
        made_from = runtime_of(job.int8, job.manifest)
        found = gathered(job.parts, modes, images, "cpu", made_from, "runtime_part")
        return zip(found, images.labels(), strict=True)
    int8 = (runner(session(path, quantized=True, threads=job.threads)) for path in job.int8)
    return run_in_turn(dict(zip(modes, int8, strict=True)), images.batches)


def warn(int8: Path, found: RuntimeMetrics, claimed: int) -> None:
    """Say so where the model agrees less with the simulation than it should, or runs less in integers.

    Args:
        claimed: products in integers, as deploy.json says.
    """
    runs = integer_products(found.kernels)
    if runs != claimed:
        print(
            f"warning: {int8}: deploy.json says that {claimed} products run in integers, "
            f"ONNX Runtime runs {runs}; all of them: {found.kernels}",
            file=sys.stderr,
        )
    if found.agrees is False:
        first = found.first_departing or "none: every operator alone is within its bounds"
        rounds_less = found.first_departing is None and (found.logits_sqnr_db or 0) > (
            found.simulated_logits_sqnr_db or 0
        )
        why = "; it rounds less than the simulation and is nearer to floating point" if rounds_less else ""
        print(
            f"warning: {int8}: agrees with the simulation on {found.agreement_simulation:.2f} % of "
            f"{found.images} images, less than {found.least_agreement:.2f} %; "
            f"first operator that departs: {first}{why}",
            file=sys.stderr,
        )


def read_reports(
    paths: Sequence[Path], int8: Sequence[Path], fused: FusedModel, qparams: Path
) -> dict[Mode, DeployReport]:
    """By mode each deploy.json, if it belongs to the files given."""
    if len(paths) != len(int8):
        raise UserError(f"--deployed: {len(paths)} files, --int8: {len(int8)}; give one of each for a mode")
    reports: dict[Mode, DeployReport] = {}
    for path, model in zip(paths, int8, strict=True):
        report = records.read(path, DeployReport)
        made = report.graph_sha256, report.qparams_sha256, report.int8_sha256
        for file, digest in zip((fused.path, qparams, model), made, strict=True):
            if sha256(file) != digest:
                raise UserError(f"{path}: belongs to another file than {file}; deploy again")
        if report.mode in reports:
            raise UserError(f"{path}: mode {report.mode!r} is given twice")
        reports[report.mode] = report
    return reports


if __name__ == "__main__":
    run_job(main, VerifyRuntime)
