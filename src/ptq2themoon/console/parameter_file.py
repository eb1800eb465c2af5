"""A parameter file for one model and its images, written after looking at both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ptq2themoon.vocabulary.csv_lines import short_lines
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.image_folders import entries
from ptq2themoon.vocabulary.model_source import LOCAL, ONNX
from ptq2themoon.vocabulary.parameters import Params

CALIBRATION, BATCH = 256, 32  # images, at most
EVALUATION = 2000  # images, at most
IMAGENET = "0.485,0.456,0.406", "0.229,0.224,0.225"


@dataclass(frozen=True)
class Wish:
    """What somebody wants to quantize, as the command line says it.

    Attributes:
        model: an ONNX file, a folder with timm's config.json, or a timm name.
        images: a folder, flat or with one subfolder per class, or a CSV of paths and labels.
        test: images to measure on, in the same form; None: those that calibrate.
        mean, std: of an ONNX file's images, for pixels in 0..1.
        classes: of a checkpoint with classes of its own, for timm.create_model.
    """

    model: str
    images: Path
    test: Path | None = None
    checkpoint: Path | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    classes: int | None = None
    features: bool = False
    recipes: Sequence[str] = ("ship",)
    bits: Sequence[str] = ("w8a8",)

    @property
    def name(self) -> str:
        """The model's name in paths."""
        path = Path(self.model)
        stem = path.stem if path.suffix == ".onnx" else path.name
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "model"


def parameters(wish: Wish, recipes: Path) -> dict[str, Any]:
    """The parameters as `params.yaml` has them; paths are absolute.

    Args:
        recipes: the folder of recipes.

    Raises:
        UserError: no such file or folder, no images, or an ONNX file without mean and std.
    """
    kind, count = kind_of(wish.images)
    test = wish.test or wish.images
    if kind_of(test)[0] != kind:
        raise UserError(f"--test {test}: must be a {kind} as --images is")
    measured = kind_of(test)[1]
    data = {"kind": kind, "calibration": str(wish.images.resolve()), "evaluation": str(test.resolve())}
    found = {
        "models": {wish.name: model(wish)},
        "datasets": {"images": data},
        "recipes": list(wish.recipes),
        "bits": list(wish.bits),
        "calibration": {"images": min(CALIBRATION, count), "batch_size": min(BATCH, count), "seeds": [0]},
        "evaluation": {"images": min(EVALUATION, measured), "batch_size": 25},
        "errors": {"images": min(64, measured), "logits_images": min(32, measured)},
        "attention": {"images": min(4, measured)},
    }
    Params.from_mapping(found, "the command line", recipes)
    return found


def model(wish: Wish) -> dict[str, Any]:
    """The entry of the model."""
    path = Path(wish.model)
    found: dict[str, Any] = {"source": wish.model, "dataset": "images"}
    if path.suffix == ".onnx":
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if not (wish.mean and wish.std):
            raise UserError(
                f"{path}: an ONNX file does not tell how its images were normalised; give --mean and --std, "
                f"for ImageNet's --mean {IMAGENET[0]} --std {IMAGENET[1]}"
            )
        found["source"] = f"{ONNX}{path.resolve()}"
    elif path.is_dir():
        found["source"] = f"{LOCAL}{path.resolve()}"
    if wish.checkpoint:
        found["checkpoint"] = str(wish.checkpoint.resolve())
    if wish.classes is not None:
        found["arguments"] = {"num_classes": wish.classes}
    given = {key: list(value) for key, value in (("mean", wish.mean), ("std", wish.std)) if value}
    return {**found, **({"preprocessing": given} if given else {}), "classifier": not wish.features}


def kind_of(images: Path) -> tuple[str, int]:
    """The kind of data set, and how many files it has at most."""
    if images.suffix == ".csv" and images.is_file():
        try:
            with images.open(encoding="utf-8", errors="surrogateescape") as file:
                return "csv", sum(1 for line in short_lines(file) if line.strip()) - 1
        except ValueError as error:
            raise UserError(f"{images}: can't be read as CSV: {error}") from None
    if not images.is_dir():
        raise UserError(f"{images}: no folder of images, and no CSV of paths and labels")
    count = sum(1 for entry in entries(images) if not entry.passed_over)
    if not count:
        raise UserError(f"{images}: no images")
    return "folder", count


def text(found: dict[str, Any], command: str) -> str:
    """The file, with a comment on each section."""
    notes = {
        "models": "What is quantized; results lie under its name.",
        "datasets": "calibration: what quantizers see; evaluation: what models are measured on.",
        "recipes": "Files of recipes/; several are compared.",
        "bits": "Weights and activations, 2 to 8 each.",
        "calibration": "Each seed draws its own images.",
        "evaluation": "null: all images.",
        "errors": "Images for the error of each operator.",
        "attention": "Images whose attention is drawn.",
    }
    lines = [f"# Written by `{command}`."]
    for key, value in found.items():
        lines += ["", f"# {notes[key]}", yaml.safe_dump({key: value}, sort_keys=False).rstrip("\n")]
    return "\n".join(lines) + "\n"
