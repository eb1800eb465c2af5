"""The files that parameters name: whether they are there, and hold what is asked of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ptq2themoon.vocabulary.csv_lines import short_lines
from ptq2themoon.vocabulary.image_folders import class_folders, counted, nested_problem, order_problem
from ptq2themoon.vocabulary.validation import Key

if TYPE_CHECKING:
    from ptq2themoon.vocabulary.model_parameters import Dataset
    from ptq2themoon.vocabulary.parameters import Params

# What is asked of the evaluation images: so many of them, at least.
ASKED = (("errors", "images"), ("errors", "logits_images"), ("attention", "images"))


def file_problems(params: Params) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong) of each checkpoint and data set of a model."""
    for name, model in params.models.items():
        if model.checkpoint and not Path(model.checkpoint).is_file():
            yield ("models", name, "checkpoint"), f"no file {model.checkpoint!r}"
    for name in sorted({model.dataset for model in params.models.values()}):
        data = params.datasets[name]
        for part in ("calibration", "evaluation"):
            path = getattr(data, part)
            if data.kind != "torchvision" and not Path(path).exists():
                yield ("datasets", name, part), f"no file or folder {path!r}"
        if data.kind == "folder" and not data.classes and _labels_count(params, name):
            yield from _other_classes(name, data)
            yield from _other_order(name, data)
        yield from _too_few_images(params, name, data)


def _labels_count(params: Params, name: str) -> bool:
    return any(
        model.classifier and model.arguments.get("num_classes") != 0
        for model in params.models.values()
        if model.dataset == name
    )


def _other_classes(name: str, data: Dataset) -> Iterator[tuple[Key, str]]:
    """Class folders that differ between the parts of a data set, so that its labels would too."""
    drawn, tested = (set(class_folders(Path(part))) for part in (data.calibration, data.evaluation))
    if drawn and tested and drawn != tested:
        only = ", ".join(sorted(drawn ^ tested)[:3])
        yield (
            ("datasets", name, "evaluation"),
            f"{data.evaluation!r} has {len(tested)} class folders, {data.calibration!r} has {len(drawn)} "
            f"(only in one: {only}); give both the same, or calibrate on a folder without subfolders",
        )


def _other_order(name: str, data: Dataset) -> Iterator[tuple[Key, str]]:
    """Class folders whose labels depend on an order that is not said."""
    if data.class_order is None and (problem := order_problem(class_folders(Path(data.evaluation)))):
        yield ("datasets", name, "class_order"), f"missing; {problem}"
    elif problem := nested_problem(Path(data.evaluation), data.class_order):
        said = "missing" if data.class_order is None else data.class_order
        yield ("datasets", name, "class_order"), f"{said}; {problem}"


def _too_few_images(params: Params, name: str, data: Dataset) -> Iterator[tuple[Key, str]]:
    """What is asked of more images than there are; broken ones only show when they are read."""
    asked = {
        ("calibration", "images"): params.calibration.images,
        ("evaluation", "images"): params.evaluation.images or 0,
        **{key: getattr(getattr(params, key[0]), key[1]) for key in ASKED},
    }
    for part in ("calibration", "evaluation"):
        keys = [key for key in asked if (key[0] == "calibration") == (part == "calibration")]
        path = getattr(data, part)
        found = images_in(data.kind, Path(path), max(asked[key] for key in keys))
        for key in keys:
            stated = key[1] in getattr(params, key[0]).model_fields_set
            if found and asked[key] > found and stated:
                yield key, f"{asked[key]}, but {path!r} holds {found} images; at most that many"


def images_for(params: Params, model: str, section: str, key: str) -> int:
    """How many evaluation images of a model are asked for; by default no more than there are.

    Args:
        section, key: one of `ASKED`.
    """
    given = getattr(params, section)
    asked: int = getattr(given, key)
    if key in given.model_fields_set:
        return asked
    data = params.every_dataset[params.every_model[model].dataset]
    there = images_in(data.kind, Path(data.evaluation), asked)
    return min(number for number in (asked, there, params.evaluation.images) if number)


def images_in(kind: str, path: Path, most: int) -> int | None:
    """How many images there are, `most` where there are more; None where that is not known at once.

    A file of another form is left to the stage that reads it.
    """
    if kind == "folder" and path.is_dir():
        return counted(path, most)
    if kind == "arrays" and path.is_file():
        try:
            with safe_open(path, framework="numpy") as file:
                shape: list[int] = (
                    file.get_slice("images").get_shape() if "images" in set(file.keys()) else []
                )
        except (SafetensorError, OSError):
            return None
        return min(shape[0], most) if shape else None
    if kind == "csv" and path.is_file():
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                return max(
                    0, sum(1 for _ in islice(filter(None, csv.reader(short_lines(file))), most + 1)) - 1
                )
        except (ValueError, csv.Error):
            return None
    return None
