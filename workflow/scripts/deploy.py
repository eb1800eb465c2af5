"""Stage deploy: fused.onnx and quantization parameters to int8.onnx, which runtimes execute."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from ptq2themoon.deploy.deploy_records import DeployReport
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.fused_model import FusedModel, fused_files
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.stage import Stage, run, sha256
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.modes import MODES, PROFILES
from ptq2themoon.vocabulary.validation import validate


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the fused model")
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
        inputs=[*fused_files(args.model), *args.qparams],
        outputs=[args.out, args.out_report],
        parameters={"mode": args.mode, "profile": args.profile},
    ) as stage:
        fused = FusedModel.open(args.model)
        fused.check_parameters(args.qparams)
        model = read_qparams(*args.qparams).model(fused.graph)
        made = deploy(model.edited, model.quantized, args.mode, args.profile, source=fused.path)
        onnx.save(made.model, stage.temporary(args.out))
        report = {
            **made.report(item.operator for item in model.quantized),
            "graph_sha256": fused.sha256,
            "qparams_sha256": sha256(args.qparams[0]),
            "int8_sha256": sha256(stage.temporary(args.out)),
            "bytes": {"fp32": fused.path.stat().st_size, "int8": stage.temporary(args.out).stat().st_size},
        }
        records.write(stage.temporary(args.out_report), validate(DeployReport, report, "deploy.json"))


if __name__ == "__main__":
    run(main)
