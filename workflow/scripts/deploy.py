"""Stage deploy: fused.onnx and quantization parameters to int8.onnx, which runtimes execute."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from ptq2themoon.data import Preprocessing, read_info
from ptq2themoon.deploy.export import deploy
from ptq2themoon.deploy.modes import MODES, PROFILES
from ptq2themoon.graph.files import check_same_model, read_graph
from ptq2themoon.quantize.files import read_qparams
from ptq2themoon.stage import Stage, run, sha256, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True, help="fused.onnx")
    parser.add_argument("--fusion", type=Path, required=True, help="fusion.json")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--qparams", type=Path, nargs=2, required=True, help="qparams.json and .safetensors")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0])
    parser.add_argument("--out", type=Path, required=True, help="int8.onnx")
    parser.add_argument("--out-report", type=Path, required=True, help="deploy.json")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with Stage(
        "deploy",
        inputs=[args.graph, args.fusion, args.info, *args.qparams],
        outputs=[args.out, args.out_report],
        parameters={"mode": args.mode, "profile": args.profile},
    ) as stage:
        preprocessing = Preprocessing.from_info(read_info(args.info), args.info)
        check_same_model(args.graph, args.fusion, args.info, preprocessing.input_size, args.qparams)
        model = read_qparams(*args.qparams).model(read_graph(args.graph))
        made = deploy(model.edited, model.quantized, args.mode, args.profile, source=args.graph)
        onnx.save(made.model, stage.temporary(args.out))
        report = {
            **made.report(item.operator for item in model.quantized),
            "graph_sha256": sha256(args.graph),
            "qparams_sha256": sha256(args.qparams[0]),
            "int8_sha256": sha256(stage.temporary(args.out)),
            "bytes": {"fp32": args.graph.stat().st_size, "int8": stage.temporary(args.out).stat().st_size},
        }
        write_json(stage.temporary(args.out_report), report)


if __name__ == "__main__":
    run(main)
