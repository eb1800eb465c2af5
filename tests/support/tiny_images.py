"""Small images, what a model wants of them, and the scripts that read them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import script_path
from tiny_info import model_info

from ptq2themoon.data import Preprocessing
from ptq2themoon.vocabulary.validation import validate


def preprocessing(channels: int = 3, size: int = 16, **changes: object) -> Preprocessing:
    values = {
        "input_size": [channels, size, size],
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406][:channels],
        "std": [0.229, 0.224, 0.225][:channels],
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    return validate(Preprocessing, values | changes, "model.json: preprocessing")


def picture(seed: int, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_info(path: Path, num_classes: int | None = 3, channels: int = 3, **changes: object) -> Path:
    """A model.json; without classes the model gives features."""
    fields = preprocessing(channels, **changes).model_dump()
    path.write_text(json.dumps(model_info(fields["input_size"], num_classes, **fields)))
    return path


def run_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Exit status of a script's `main`, run in this process: importing torch anew takes seconds."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(str(script_path(name)), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def arguments(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]
