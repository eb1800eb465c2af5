"""What stands before the first layer does not hide it: folded where it can be, passed where it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fused_result import Result, result
from onnx import TensorProto, helper
from tiny_models import random_images, randomised, tiny_module, to_onnx
from torch import Tensor, nn

RGB = {"in_chans": 3}
MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([58.0, 57.0, 56.0])
Step = Callable[[Tensor], Tensor]


class After(nn.Module):
    """A tiny ViT of three channels, and what is done to its images."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.model = step, tiny_module(**RGB)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.step(images))


def planes(value: Tensor) -> Tensor:
    return value.view(1, 3, 1, 1)


def of_each_channel(images: Tensor) -> Tensor:
    return torch.cat([(images[:, i : i + 1] - MEAN[i]) / STD[i] for i in range(3)], 1)


def within_rows(images: Tensor) -> Tensor:
    return ((images.permute(0, 2, 3, 1) - MEAN) / STD).permute(0, 3, 1, 2)


# The step, and the operators of it that stay.
STEPS: dict[str, tuple[Step | nn.Module, int]] = {
    "mean and deviation": (lambda x: (x - planes(MEAN)) / planes(STD), 0),
    "to -1..1": (lambda x: x / 127.5 - 1, 0),
    "from one": (lambda x: 1 - x / 255, 0),
    "channels last": (within_rows, 0),
    "BGR": (lambda x: (x / 255)[:, [2, 0, 1]] - planes(MEAN) / 255, 0),
    "BatchNorm": (randomised(nn.BatchNorm2d(3)), 0),
    "clamped": (lambda x: (x.clamp(0, 255) - planes(MEAN)) / planes(STD), 1),
    "each channel": (of_each_channel, 6),
    "resized": (lambda x: nn.functional.interpolate(x / 255, size=(16, 16), mode="bilinear"), 2),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fused(to_onnx(tiny_module(**RGB), (1, 3, 16, 16)), tmp_path_factory.mktemp("plain"))


def fused(model: onnx.ModelProto, folder: Path) -> Result:
    onnx.save(model, folder / "model.onnx")
    return result(folder / "model.onnx", 128 + 64 * random_images(3, 3, 16, 16))


@pytest.mark.parametrize("name", STEPS)
def test_the_plain_model_with_what_stays(name: str, plain: Result, tmp_path: Path) -> None:
    step, left = STEPS[name]
    module = After(step).eval()
    found = fused(to_onnx(module, (1, 3, 16, 16)), tmp_path)
    assert found.attention == plain.attention
    more = found.places - plain.places
    assert (more.total(), {role for _, role, _ in more}) == (left, {None} if left else set())
    assert not plain.places - found.places
    with torch.no_grad():
        expected = module(128 + 64 * torch.from_numpy(random_images(3, 3, 16, 16))).numpy()
    for logits in (found.runtime, found.simulated):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


class Padded(nn.Module):
    """A stem that pads with zeros: what is subtracted before is not the same after."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.stem, self.model = step, nn.Conv2d(3, 3, 3, padding=1), tiny_module(**RGB)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.stem(self.step(images)).relu())


@pytest.mark.parametrize(("step", "left"), [(lambda x: x / 255, 0), (lambda x: x - planes(MEAN), 1)])
def test_zeros_around_the_image(step: Step, left: int, tmp_path: Path) -> None:
    module = randomised(Padded(step))
    found = fused(to_onnx(module, (1, 3, 16, 16)), tmp_path)
    assert sum(n for (kind, _, _), n in found.places.items() if kind in ("Sub", "Div")) == left
    with torch.no_grad():
        expected = module(128 + 64 * torch.from_numpy(random_images(3, 3, 16, 16))).numpy()
    np.testing.assert_allclose(found.runtime, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_casts_of_the_image(kind: int, plain: Result, tmp_path: Path) -> None:
    """To the type that it has, and to doubles and back."""
    model = to_onnx(tiny_module(**RGB), (1, 3, 16, 16))
    for node in model.graph.node:
        node.input[:] = ["back" if name == "images" else name for name in node.input]
    casts = [
        helper.make_node("Cast", ["images"], ["there"], "there", to=kind),
        helper.make_node("Cast", ["there"], ["back"], "back", to=TensorProto.FLOAT),
    ]
    for node in casts[::-1]:
        model.graph.node.insert(0, node)
    found = fused(model, tmp_path)
    assert (found.places, found.attention) == (plain.places, plain.attention)
    assert Counter(found.counts) == Counter(plain.counts)
    np.testing.assert_allclose(found.runtime, plain.runtime, atol=1e-5)
