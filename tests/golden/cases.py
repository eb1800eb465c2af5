"""What the golden files hold: which models, quantized by which recipes with which bits, on which images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from families import made, mobilevit
from golden import today
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
IMAGES, ARRAYS, TABLE = (HERE / name for name in ("images.safetensors", "golden.safetensors", "golden.json"))
RECIPES = {
    path.stem: path
    for folder in (HERE.parents[1] / "recipes", HERE / "recipes")
    for path in sorted(folder.glob("*.yaml"))
}

# Seven blocks: some recipes name block 6.
DEIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 7, "num_heads": 3}
SWIN: dict[str, Any] = {
    "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2),
}  # fmt: skip
MODELS: dict[str, Callable[[], nn.Module]] = {
    "deit": lambda: made("deit_tiny_patch16_224", **DEIT),
    "swin": lambda: made("swin_tiny_patch4_window7_224", **SWIN),
    "mobilevit": mobilevit,
}


class Case(NamedTuple):
    """One model, quantized in one way."""

    model: str
    recipe: str
    bits: str

    def __str__(self) -> str:
        return "-".join(self)

    @classmethod
    def named(cls, name: str) -> Case:
        return cls(*name.split("-"))


class Images(NamedTuple):
    """Normalised images [16, 3, 32, 32] and labels [16], and what is done with which of them."""

    pixels: Tensor
    labels: Tensor

    @classmethod
    def read(cls) -> Images:
        stored = load_file(IMAGES)  # the division by a power of two is exact on every machine
        return cls((stored["images"].float() - 128) / 64, stored["labels"])

    def calibration(self) -> list[Tensor]:
        return list(self.pixels[:12].split(4))

    def errors(self) -> list[Tensor]:
        return [self.pixels[:6]]

    def evaluation(self) -> list[tuple[Tensor, Tensor]]:
        """The last batch is smaller."""
        return list(zip(self.pixels.split(6), self.labels.split(6), strict=True))


def quantized(case: Case, images: Images) -> today.Quantized:
    """Raises UserError for a recipe that does not fit."""
    return today.quantize(HERE / case.model, RECIPES[case.recipe], case.bits, images.calibration())


class Names(NamedTuple):
    """All tensors and operators of a model that can be quantized: what the rows of the arrays stand for."""

    tensors: list[str]
    operators: list[str]

    @classmethod
    def of(cls, model: today.Quantized) -> Names:
        """Of a model in which all are quantized."""
        return cls(list(today.scales(model)), list(today.errors(model, [])))


def scales(model: today.Quantized, names: Names) -> tuple[np.ndarray, np.ndarray]:
    """Tensors, int16 [tensors, 3], and float32 scales of all tensors, one tensor after another.

    Of each tensor: bits, axis of the channels (-1: per tensor), how many scales; zeros for one that stays
    in floating point.
    """
    found = today.scales(model)
    rows = {name: (s.bits, -1 if s.axis is None else s.axis, len(s.values)) for name, s in found.items()}
    table = dict.fromkeys(names.tensors, (0, 0, 0)) | rows
    values = [found[name].values for name in table if name in found]
    return np.array(list(table.values()), np.int16), np.concatenate(values)


def errors(model: today.Quantized, images: Images, names: Names) -> np.ndarray:
    """float32 [operators, ways, figures]; NaN for an operator that stays in floating point."""
    found = today.errors(model, images.errors())
    table = {name: np.full((len(today.WAYS), len(today.FIGURES)), np.nan) for name in names.operators} | found
    return np.array(list(table.values()), np.float32)


def deployed(model: today.Quantized) -> dict[str, Any]:
    """By mode: where each operator runs and why, the folds, and the sum of int8.onnx."""
    found = {}
    for mode in today.MODES:
        report, written = today.deployed(model, mode)
        places = {o["name"]: f"{o['runs']}: {o['why']}" for o in report["operators"]}
        found[mode] = {
            "places": {
                place: [name for name in places if places[name] == place] for place in places.values()
            },
            "folds": report["folds"],
            "sha256": hashlib.sha256(written).hexdigest(),
        }
    return found


def module(model: str, images: Images) -> nn.Module:
    """With random weights; its batch norms have the images' statistics, else signals fade on their way."""
    made = MODELS[model]()
    norms = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.inference_mode():
        made(images.pixels)
    return made.eval()


def fingerprint(model: str, images: Images) -> str:
    """Of this machine's arithmetic, without the package: sha256 of the logits of timm's own module.

    It differs on a machine that gives other last digits, and perhaps with another version of torch.
    """
    with torch.inference_mode():
        logits = module(model, images)(images.pixels)
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()
