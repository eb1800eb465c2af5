"""A model of a known shape without its weights, and images for it: enough to time, not to classify."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from ptq2themoon.vocabulary.errors import UserError, nearest

COARSE = 8  # times smaller than the images is the noise that they are blown up from
MEAN, DEVIATION = 128.0, 40.0  # grey levels


def random_weights(architecture: str, seed: int, path: Path) -> tuple[int, ...]:
    """Write what timm starts a training from; returns the input's [C, H, W].

    Raises:
        UserError: an architecture that timm has not.
    """
    if architecture not in timm.list_models():
        raise UserError(f"unknown timm model {architecture!r}; {nearest(architecture, timm.list_models())}")
    torch.manual_seed(seed)
    model = timm.create_model(architecture)
    save_file(model.state_dict(), path)
    return tuple(timm.data.resolve_data_config({}, model=model)["input_size"])


def random_images(count: int, shape: tuple[int, ...], seed: int, path: Path) -> None:
    """Write smooth noise, uint8 [N, C, H, W], with no labels (-1)."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, channels, height // COARSE, width // COARSE, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic")
    images = (smooth * DEVIATION + MEAN).clamp(0, 255).to(torch.uint8)
    save_file({"images": images, "labels": torch.full((count,), -1)}, path)
