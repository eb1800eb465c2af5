"""Stage evaluate: accuracy of a model, and for a quantized one its agreement with floating point."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.data import Preprocessing, batches, open_source, read_info, read_manifest
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import evaluate_float, evaluate_quantized
from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.quantize.simulation import load_quantized
from ptq2themoon.stage import Stage, run, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", type=lambda text: text.split("/"), required=True, help="MODEL/RECIPE/BITS/N/SEED")
    parser.add_argument("--graph", type=Path, required=True, help="fused.onnx")
    parser.add_argument("--fusion", type=Path, required=True, help="fusion.json")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--qparams", type=Path, help="qparams.json; without it: floating point")
    parser.add_argument("--kind", required=True, help="of the data set: arrays or folder")
    parser.add_argument("--source", type=Path, required=True, help="the data set")
    parser.add_argument("--manifest", type=Path, required=True, help="evaluation.csv")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is compared")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--out-attention", type=Path, help="attention.csv, with --qparams")
    return parser.parse_args()
