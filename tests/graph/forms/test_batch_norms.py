"""BatchNormalization of constants folded into the layers around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_images, randomised, run_all, to_onnx
from torch import nn

from ptq2themoon.graph.forms.normalise import normalise


class Tokens(nn.Module):
    """As LeViT: a linear layer over tokens, normalised as one long batch."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 8, bias=bias), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x[:, 0])
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Before(nn.Module):
    """In place of a LayerNorm before a linear layer: it counts channels second."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x[:, 0].relu().transpose(1, 2)).transpose(1, 2))


class Ends(nn.Module):
    """Two classifiers that read one normalised vector."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm1d(256), nn.Linear(256, 5), nn.Linear(256, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.flatten(1))
        return self.one(x) + self.two(x)


class Standardised(nn.Module):
    """Weights that are normalised, as those of a ResNet with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight
        flat = weight.reshape(1, 4, -1)
        flat = nn.functional.batch_norm(flat, None, None, training=True, momentum=0.0)
        return nn.functional.conv2d(x, flat.reshape_as(weight), self.conv.bias)


def pointwise(padding: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1, padding=padding)
    )


MODULES = {
    "linear": (lambda: Tokens(bias=False), 0),
    "linear with bias": (lambda: Tokens(bias=True), 0),
    "before a layer over tokens": (Before, 0),
    "before classifiers": (Ends, 0),
    "before a convolution": (lambda: pointwise(0), 0),
    "before one that pads": (lambda: pointwise(1), 1),  # the zeros around are not normalised
    "weights": (Standardised, 0),
}


@pytest.mark.parametrize("case", MODULES)
def test_the_same_without(case: str) -> None:
    make, left = MODULES[case]
    module = randomised(make())
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            part.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    model = normalise(to_onnx(module))
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == left
    assert sum(node.op_type == "Add" for node in model.graph.node) <= 1  # one bias
    images = random_images(3)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_all(model, images)[0], expected, rtol=0, atol=1e-5)
