"""Stage benchmark_simulation: how much faster than PPQ's own the simulation and the calibration are."""

from __future__ import annotations

import itertools

import torch

from ptq2themoon.benchmark.engines import COLUMNS, calibration, forward
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.graph.editing.onnx_run import runner, session
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.benchmark import BenchmarkSimulation

FAITHFUL = "faithful INT8 model, ONNX Runtime"


def main(job: BenchmarkSimulation) -> None:
    for option in ("count", "rounds", "threads"):
        at_least(1, getattr(job, option), f"--{option}")
    torch.set_num_threads(job.threads)
    recipe = load_recipe(job.recipe)
    facts = machine(job.threads, ("torch", "onnxruntime", "ppq"))
    with Stage.of(job, extra={"machine": facts}) as stage:
        fused = FusedModel.open(job.model, job.qparams)

        def planned() -> list[QuantizedOperator]:
            return plan(fused.operators, fused.nodes, recipe, *parse_bits(job.bits))

        found = calibration_batches(job.images, Preprocessing.of(fused.info), 1)
        images = torch.cat(list(itertools.islice(itertools.cycle(found), job.count)))
        others = {}
        if job.int8:
            run_int8 = runner(session(job.int8, threads=job.threads, quantized=True))
            array = images.numpy()
            others[FAITHFUL] = lambda: run_int8(array)
        rows = forward(fused, job.qparams, images, job.rounds, others)
        for row in rows:
            row["batch"] = job.count
        timed = calibration(fused, planned, images.split(job.batch_size), job.rounds)
        for row in timed:
            row["batch"] = job.batch_size
        facts = {"model": job.name, "images": job.count, "threads": job.threads, "rounds": job.rounds}
        write_csv(stage.temporary(job.out), COLUMNS, [{**facts, **row} for row in rows + timed])


if __name__ == "__main__":
    run_job(main, BenchmarkSimulation)
