"""From an image of any size to a model's input, pixel for pixel as timm's evaluation transform."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ptq2themoon.data.images import MODES
from ptq2themoon.errors import UserError, nearest

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


def read_info(path: Path) -> dict[str, Any]:
    """Read a model.json."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; export writes it beside model.onnx") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from error
    if not isinstance(info, dict):
        raise UserError(f"{path}: an object with 'preprocessing' and 'num_classes' expected")
    return info


def class_count(info: Mapping[str, Any], source: Path) -> int | None:
    """`num_classes` of a model.json; None for a model whose output is features."""
    count = info.get("num_classes")
    if count is None and info.get("output") == "features":
        return None
    if not isinstance(count, int) or isinstance(count, bool):
        raise UserError(f"{source}: num_classes: {count!r} is no whole number")
    return count


@dataclass(frozen=True)
class Preprocessing:
    """The `preprocessing` of a model.json: timm's data config.

    `input_size` is (channels, height, width); `mean` and `std` are for pixels in 0..1.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_info(cls, info: Mapping[str, Any], source: Path) -> Preprocessing:
        """Read and check; `source` is the file that messages name."""
        where, data = f"{source}: preprocessing", info.get("preprocessing")
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: missing")
        for name in data:
            if name not in names:
                raise UserError(f"{where}.{name}: unknown key; {nearest(name, names)}")
        for name in names:
            if name not in data:
                raise UserError(f"{where}.{name}: missing")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        found = cls(**values)
        found._check(where)
        return found

    def _check(self, where: str) -> None:
        size = self.input_size
        if (
            not isinstance(size, tuple)
            or len(size) != 3
            or not all(isinstance(n, int) and n > 0 for n in size)
        ):
            raise UserError(f"{where}.input_size: {size!r} is not [channels, height, width]")
        if size[0] not in MODES:
            raise UserError(f"{where}.input_size: {size[0]} channels; 1 (grey) or 3 (RGB) can be read")
        for name, value in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(value, tuple) and all(
                isinstance(v, int | float) and math.isfinite(v) for v in value
            )
            if not numbers or len(value) != size[0] or (name == "std" and min(value) <= 0):
                raise UserError(
                    f"{where}.{name}: {value!r} does not give a number for each of {size[0]} channels"
                )
        for name, choice, valid in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("crop_mode", self.crop_mode, CROP_MODES),
        ):
            if choice not in valid:
                raise UserError(f"{where}.{name}: {choice!r} is unknown; {nearest(choice, valid)}")
        if not isinstance(self.crop_pct, int | float) or not 0 < self.crop_pct < math.inf:
            raise UserError(f"{where}.crop_pct: {self.crop_pct!r} is no number above 0")

    @cached_property
    def _resize_and_crop(self) -> Callable[[Image.Image], Tensor]:
        # timm takes seconds to import, and arrays of the model's own size never come here.
        from timm.data.transforms_factory import create_transform

        transform: Callable[[Image.Image], Tensor] = create_transform(
            input_size=self.input_size,
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,  # the colour of the padding when crop_mode is "border"
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )
        return transform

    def crop(self, image: Image.Image) -> Tensor:
        """Resize and crop to uint8 [C, H, W]; the image's mode already matches the channels."""
        return self._resize_and_crop(image)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 of mean 0 and deviation 1 over the training data."""
        shape = (1, len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32).view(shape)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)
