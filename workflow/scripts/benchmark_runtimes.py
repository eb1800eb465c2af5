"""Stage benchmark_runtimes: our INT8 models and other tools', by turns in one run; needs `make peers`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import load_file

from ptq2themoon.benchmark import peers
from ptq2themoon.benchmark.arena import BASE, LATENCY, OPERATORS, PEERS, Arena, Entry
from ptq2themoon.benchmark.channelwise import per_axis
from ptq2themoon.benchmark.machine import machine
from ptq2themoon.benchmark.runtimes import OpenVino, Precision
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.records import write_json

PACKAGES = ("onnxruntime", "openvino", "nncf", "onnx", "numpy")
HINTS: tuple[Precision, ...] = ("f32", "bf16")
TOOL = "ptq2themoon"


def ours(text: str) -> tuple[str, Path]:
    variant, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: VARIANT=FILE expected")
    return variant, Path(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the tables call the model")
    parser.add_argument("--model", type=Path, required=True, help="model.onnx, FP32")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--ours", type=ours, action="append", default=[], help="recipe/mode=int8.onnx")
    parser.add_argument("--ppq", type=Path, help="the file that PPQ exports for ONNX Runtime")
    parser.add_argument(
        "--calibration", type=Path, required=True, help="images that the tools calibrate with"
    )
    parser.add_argument("--evaluation", type=Path, help="images and labels; without, no accuracy")
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    for table in ("machine", "latency", "peers", "operators"):
        parser.add_argument(f"--out-{table}", type=Path, required=True)
    args = parser.parse_args()
    for option in ("rounds", "threads"):
        at_least(1, getattr(args, option), f"--{option}")
    return args


def images_and_labels(path: Path, info: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Float32 [N, C, H, W], normalised as the model wants them, and labels [N] where all are known."""
    preprocessing = json.loads(info.read_text(encoding="utf-8"))["preprocessing"]
    mean, std = (np.float32(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    arrays = load_file(path)
    labels = arrays["labels"]
    images = (arrays["images"].astype(np.float32) / np.float32(255) - mean) / std
    return images, labels if (labels >= 0).all() else None


def both_runtimes(tool: str, variant: str, path: Path, *, quantized: bool = True) -> list[Entry]:
    found = [Entry(tool, variant, path, quantized=quantized)]
    return found + [Entry(tool, variant, path, "OpenVINO", hint, quantized) for hint in HINTS]


def entries(args: argparse.Namespace, images: np.ndarray, folder: Path) -> list[Entry]:
    """Every model in every runtime that it is for; the peers are made here."""
    found = both_runtimes("-", "FP32", args.model, quantized=False)
    for variant, path in args.ours:
        found += (
            both_runtimes(TOOL, variant, path) if variant.endswith("fast") else [Entry(TOOL, variant, path)]
        )
        model, changed = per_axis(onnx.load(path))
        if changed and variant.endswith("fast"):
            onnx.save(model, folder / f"{len(found)}.onnx")
            found.append(Entry(TOOL, f"{variant}, scales along the axis", folder / f"{len(found)}.onnx"))
    (name,) = (item.name for item in onnx.load(args.model, load_external_data=False).graph.input)
    static = peers.static(args.model, name, images, folder / "static.onnx")
    found.append(Entry("ONNX Runtime", "static", static))
    found.append(Entry("ONNX Runtime", "dynamic", peers.dynamic(args.model, folder / "dynamic.onnx")))
    nncf = peers.nncf_model(OpenVino(args.threads).read(args.model), images, folder / "nncf.xml")
    found += [Entry("NNCF", "mixed preset", nncf, "OpenVINO", hint) for hint in HINTS]
    return found + ([Entry("PPQ", "its own export", args.ppq)] if args.ppq else [])


def main() -> None:
    args = parse_args()
    given = [path for path in (args.ppq, args.evaluation) if path]
    outputs = [args.out_machine, args.out_latency, args.out_peers, args.out_operators]
    with (
        Stage(
            "benchmark_runtimes",
            inputs=[args.model, args.info, args.calibration, *given, *(path for _, path in args.ours)],
            outputs=outputs,
            parameters={
                "model": args.name,
                "variants": [variant for variant, _ in args.ours],
                **{key: getattr(args, key) for key in ("batches", "rounds", "threads")},
            },
            device="cpu",
        ) as stage,
        tempfile.TemporaryDirectory() as temporary,
    ):
        facts = machine(args.threads, PACKAGES)
        images, _ = images_and_labels(args.calibration, args.info)
        arena = Arena(args.name, entries(args, images, Path(temporary)), args.threads, Path(temporary))
        batches = [np.resize(images, (batch, *images.shape[1:])) for batch in args.batches]
        latency = [row for batch in batches for row in arena.latency(batch, args.rounds)]
        tested, labels = images_and_labels(args.evaluation, args.info) if args.evaluation else (None, None)
        comparison = arena.comparison(tested, labels, max(args.batches))
        operators = [row for batch in batches for row in arena.operators(batch, args.rounds)]
        write_json(stage.temporary(args.out_machine), {"model": args.name, "base": BASE, **facts})
        write_csv(stage.temporary(args.out_latency), LATENCY, latency)
        write_csv(stage.temporary(args.out_peers), PEERS, comparison)
        write_csv(stage.temporary(args.out_operators), OPERATORS, operators)


if __name__ == "__main__":
    run(main)
