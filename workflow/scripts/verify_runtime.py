"""Stage verify_runtime: an INT8 model in ONNX Runtime against its simulation, whole and by operator."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ptq2themoon.data import Preprocessing, batches, class_count, open_source, read_info, read_manifest
from ptq2themoon.deploy.compare import compare
from ptq2themoon.deploy.report import Place
from ptq2themoon.deploy.runtime import integer_kernels, runner, session
from ptq2themoon.deploy.verify import collect, measure, operator_table, verdict
from ptq2themoon.device import resolve_device
from ptq2themoon.errors import UserError, at_least
from ptq2themoon.evaluate.accuracy import are_labelled
from ptq2themoon.evaluate.arguments import add_model_and_images
from ptq2themoon.graph.files import check_same_model, read_graph
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.quantize.tensors import load
from ptq2themoon.stage import Stage, run, sha256, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_and_images(parser, floating_point=False)
    parser.add_argument("--int8", type=Path, required=True, help="int8.onnx")
    parser.add_argument("--deployed", type=Path, required=True, help="deploy.json beside it")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--operator-images", type=int, default=4, help="for the comparison by operator")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    parser.add_argument("--out", type=Path, required=True, help="runtime.json")
    parser.add_argument("--out-operators", type=Path, required=True, help="runtime_operators.csv")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    at_least(1, args.operator_images, "--operator-images")
    device, source = resolve_device(args.device), open_source(args.kind, args.source)
    files = (args.graph, args.fusion, args.info, *args.qparams, args.int8, args.deployed, args.manifest)
    with Stage(
        "verify_runtime",
        inputs=[*files, *source.files],
        outputs=[args.out, args.out_operators],
        parameters={
            "kind": args.kind,
            "source": str(args.source),
            "batch_size": args.batch_size,
            "operator_images": args.operator_images,
        },
        device=device,
    ) as stage:
        info = read_info(args.info)
        preprocessing = Preprocessing.from_info(info, args.info)
        check_same_model(args.graph, args.fusion, args.info, preprocessing.input_size, args.qparams)
        report = read_report(args.deployed, args.graph, args.qparams[0], args.int8)
        rows, classes = read_manifest(args.manifest), class_count(info, args.info)
        kind = classes is not None, are_labelled([row.label for row in rows], args.manifest)
        if all(kind):
            rows = read_manifest(args.manifest, classes)  # holds each label against the classes
        simulated, mode = load_model(args.graph, device, args.qparams), report["mode"]
        int8, floating = (runner(session(path, threads=args.threads)) for path in (args.int8, args.graph))
        data = batches(rows, source, preprocessing, args.batch_size)
        metrics = measure(collect(int8, floating, simulated, data), *kind)
        few = batches(rows[: args.operator_images], source, preprocessing, args.operator_images)
        images = torch.cat([images for images, _ in few])
        quantized = load(*args.qparams)
        differences = compare(read_graph(args.graph), quantized, simulated, images, mode)
        found = {"mode": mode, "runtime": "ONNX Runtime", **metrics, **verdict(metrics, differences, mode)}
        with tempfile.TemporaryDirectory() as folder:
            found["kernels"] = integer_kernels(args.int8, Path(folder))
        places = {entry["name"]: Place(entry["runs"], entry["why"]) for entry in report["operators"]}
        table = operator_table(differences, (item.operator for item in quantized), places)
        table.to_csv(stage.temporary(args.out_operators), index=False, float_format="%.8g")
        write_json(stage.temporary(args.out), found)
    warn(args.int8, found)


def warn(int8: Path, found: dict[str, Any]) -> None:
    """Say so where the model agrees less with the simulation than it should."""
    if found["agrees"] is False:
        first = found["first_departing"] or "none: every operator alone is within its bounds"
        print(
            f"warning: {int8}: agrees with the simulation on {found['agreement_simulation']:.2f} % of "
            f"{found['images']} images, less than {found['least_agreement']:.2f} %; "
            f"first operator that departs: {first}",
            file=sys.stderr,
        )


def read_report(path: Path, graph: Path, qparams: Path, int8: Path) -> dict[str, Any]:
    """deploy.json, if it belongs to the files given."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made = [report[f"{name}_sha256"] for name in ("graph", "qparams", "int8")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: not a report of the stage deploy ({reason}); deploy again") from None
    for file, digest in zip((graph, qparams, int8), made, strict=True):
        if sha256(file) != digest:
            raise UserError(f"{path}: belongs to another file than {file}; deploy again")
    return report


if __name__ == "__main__":
    run(main)
