"""The arguments of every stage that runs a fused model on the evaluation images, and the images they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from ptq2themoon.data import (
    Batches,
    Preprocessing,
    Source,
    batches,
    class_count,
    read_info,
    read_manifest,
    spread,
)
from ptq2themoon.evaluate.accuracy import are_labelled
from ptq2themoon.graph.files import check_same_model


def add_model_and_images(parser: argparse.ArgumentParser, *, floating_point: bool) -> None:
    """The model, its quantization parameters, the images and the device.

    Args:
        floating_point: whether the stage also runs without --qparams.
    """
    add_model(parser)
    qparams = "qparams.json and .safetensors" + ("; else floating point" if floating_point else "")
    parser.add_argument("--qparams", type=Path, nargs=2, required=not floating_point, help=qparams)
    add_images(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The fused model and the device."""
    parser.add_argument("--graph", type=Path, required=True, help="fused.onnx")
    parser.add_argument("--fusion", type=Path, required=True, help="fusion.json")
    parser.add_argument("--info", type=Path, required=True, help="model.json")
    parser.add_argument("--device", default="auto")


def add_images(parser: argparse.ArgumentParser) -> None:
    """The evaluation images."""
    parser.add_argument("--kind", required=True, help="of the data set: arrays, folder, csv or torchvision")
    parser.add_argument("--source", type=Path, required=True, help="the data set")
    parser.add_argument("--manifest", type=Path, required=True, help="evaluation.csv")


class Evaluated(NamedTuple):
    """The evaluation images in batches, and whether accuracy can be measured on them.

    Attributes:
        classifier: whether the outputs are logits.
        labelled: whether every image has a label.
    """

    batches: Batches
    classifier: bool
    labelled: bool


def evaluated_images(
    args: argparse.Namespace, source: Source, batch_size: int, most: int | None = None
) -> Evaluated:
    """What the arguments name, checked against the model.

    Args:
        most: so many images at most, spread over the manifest; None: all.

    Raises:
        UserError: files that do not belong together, or labels that the model does not know.
    """
    info = read_info(args.info)
    preprocessing, classes = Preprocessing.from_info(info, args.info), class_count(info, args.info)
    rows = read_manifest(args.manifest)
    classifier, labelled = classes is not None, are_labelled([row.label for row in rows], args.manifest)
    if classifier and labelled:
        rows = read_manifest(args.manifest, classes)  # holds each label against the classes
    if most is not None and most < len(rows):
        rows = spread(rows, most, "--images", args.manifest)
    check_same_model(
        args.graph, args.fusion, args.info, preprocessing.input_size, getattr(args, "qparams", None)
    )
    return Evaluated(batches(rows, source, preprocessing, batch_size), classifier, labelled)
