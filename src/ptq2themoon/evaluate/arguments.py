"""The arguments of every stage that runs a fused model on the evaluation images, and the images they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ptq2themoon.data import (
    Batches,
    Preprocessing,
    Source,
    batches,
    read_manifest,
    spread,
)
from ptq2themoon.evaluate.accuracy import are_labelled
from ptq2themoon.graph.fused_model import FusedModel


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
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of fused.onnx, fusion.json, model.json"
    )
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
        places: of each image in the manifest, from 0.
    """

    batches: Batches
    classifier: bool
    labelled: bool
    places: Sequence[int]


def open_model(args: argparse.Namespace) -> FusedModel:
    """The fused model that the arguments name, and which the quantization parameters must be made for.

    Raises:
        UserError: files that do not belong together.
    """
    fused = FusedModel.open(args.model)
    if qparams := getattr(args, "qparams", None):
        fused.check_parameters(qparams)
    return fused


def evaluated_images(
    args: argparse.Namespace, fused: FusedModel, source: Source, batch_size: int, most: int | None = None
) -> Evaluated:
    """What the arguments name, checked against the model.

    Args:
        most: so many images at most, spread over the manifest; None: all.

    Raises:
        UserError: labels that the model does not know, or some images with and some without.
    """
    classes = fused.info.num_classes
    rows = read_manifest(args.manifest)
    classifier, labelled = classes is not None, are_labelled([row.label for row in rows], args.manifest)
    if classifier and labelled:
        rows = read_manifest(args.manifest, classes)  # holds each label against the classes
    places: Sequence[int] = range(len(rows))
    if most is not None and most < len(rows):
        places = spread(places, most, "--images", args.manifest)
    found = batches([rows[place] for place in places], source, Preprocessing.of(fused.info), batch_size)
    return Evaluated(found, classifier, labelled, places)
