"""Stage benchmark_simulation: how much faster than PPQ's own the simulation and the calibration are."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch

from ptq2themoon.benchmark.engines import COLUMNS, calibration, forward
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.benchmark.runtimes import onnx_session
from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.deploy.sessions import runner
from ptq2themoon.graph.fused_model import FusedModel, fused_files
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.parameters import parse_bits
from ptq2themoon.vocabulary.recipes import load_recipe

FAITHFUL = "faithful INT8 model, ONNX Runtime"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the table calls the model")
    parser.add_argument("--model", type=Path, required=True, help="folder of the fused model")
    parser.add_argument("--qparams", type=Path, nargs=2, required=True, help="qparams.json and .safetensors")
    parser.add_argument("--int8", type=Path, help="the faithful INT8 model of these parameters")
    parser.add_argument("--recipe", type=Path, required=True, help="to calibrate by")
    parser.add_argument("--bits", required=True, help="as w8a8")
    parser.add_argument("--images", type=Path, required=True, help="calibration images")
    parser.add_argument(
        "--count", type=int, default=32, help="images to calibrate with, and to simulate at once"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="of the calibration")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for option in ("count", "rounds", "threads"):
        at_least(1, getattr(args, option), f"--{option}")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe)
    settings = {key: getattr(args, key) for key in ("count", "batch_size", "rounds", "threads", "bits")}
    int8 = [args.int8] if args.int8 else []
    with Stage(
        "benchmark_simulation",
        inputs=[*fused_files(args.model), *args.qparams, args.images, *recipe.sources, *int8],
        outputs=[args.out],
        parameters={"model": args.name, "recipe": recipe.name, **settings},
        device="cpu",
    ) as stage:
        stage.parameters["machine"] = machine(args.threads, ("torch", "onnxruntime", "ppq"))
        fused = FusedModel.open(args.model)
        fused.check_parameters(args.qparams)

        def planned() -> list[QuantizedOperator]:
            return plan(fused.operators, fused.nodes, recipe, *parse_bits(args.bits))

        found = calibration_batches(args.images, Preprocessing.of(fused.info), 1)
        images = torch.cat(list(itertools.islice(itertools.cycle(found), args.count)))
        others = {}
        if args.int8:
            run_int8 = runner(onnx_session(args.int8, args.threads, quantized=True))
            array = images.numpy()
            others[FAITHFUL] = lambda: run_int8(array)
        rows = forward(fused, args.qparams, images, args.rounds, others)
        for row in rows:
            row["batch"] = args.count
        timed = calibration(fused, planned, images.split(args.batch_size), args.rounds)
        for row in timed:
            row["batch"] = args.batch_size
        facts = {"model": args.name, "images": args.count, "threads": args.threads, "rounds": args.rounds}
        write_csv(stage.temporary(args.out), COLUMNS, [{**facts, **row} for row in rows + timed])


if __name__ == "__main__":
    run(main)
