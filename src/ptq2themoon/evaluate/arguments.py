"""The arguments of every stage that runs a fused model on the evaluation images."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model_and_images(parser: argparse.ArgumentParser, *, floating_point: bool) -> None:
    """The model, the images and the device.

    Args:
        floating_point: whether the stage also runs without --qparams.
    """
    qparams = "qparams.json and .safetensors" + ("; else floating point" if floating_point else "")
    add_floating_model_and_images(parser)
    parser.add_argument("--qparams", type=Path, nargs=2, required=not floating_point, help=qparams)


def add_floating_model_and_images(parser: argparse.ArgumentParser) -> None:
    """The same for a stage that runs the model in floating point only."""
    parser.add_argument("--graph", type=Path, required=True, help="fused.onnx")
    parser.add_argument("--fusion", type=Path, required=True, help="fusion.json")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--kind", required=True, help="of the data set: arrays, folder, csv or torchvision")
    parser.add_argument("--source", type=Path, required=True, help="the data set")
    parser.add_argument("--manifest", type=Path, required=True, help="evaluation.csv")
    parser.add_argument("--device", default="auto")
