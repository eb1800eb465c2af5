"""What of an INT8 model's weights stays in floating point, and its share of the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_deployed import Quantized
from tiny_models import randomised, tiny_module
from torch import nn

from ptq2themoon.deploy.deploy_records import FloatingWeights
from ptq2themoon.deploy.floating_weights import floating_weights
from ptq2themoon.vocabulary.modes import Mode


class Decoder(nn.Module):
    """Tokens of 4 x 4 patches made an image again by a transposed convolution, as a decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_module(global_pool="", class_token=False, num_classes=0)
        self.up = nn.ConvTranspose2d(32, 16, 4, 4)
        randomised(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.encoder(images)
        return self.up(x.transpose(1, 2).reshape(-1, 32, 4, 4))


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_a_transposed_convolution_is_listed(mode: Mode, tmp_path: Path) -> None:
    found = Quantized.of_module(tmp_path, Decoder(), (1, 16, 16))
    made = found.deployed(mode)
    report = floating_weights(made.model, found.tiny.operators)
    FloatingWeights.model_validate(report)
    first = report["operators"][0]
    assert (first["type"], first["role"]) == ("ConvTranspose", None)
    weights = 32 * 16 * 4 * 4 * 4
    assert weights <= first["bytes"] <= weights + 500  # its name, and the bias
    integers = sum(m.weight.numel() for m in found_layers())
    assert first["share"] == pytest.approx(weights / (weights + integers), rel=0.25)
    assert report["share"] >= first["share"]
    sizes = [entry["bytes"] for entry in report["operators"]]
    assert sizes == sorted(sizes, reverse=True)


def found_layers() -> list[nn.Linear | nn.Conv2d]:
    return [m for m in Decoder().modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def test_what_is_in_integers_is_not_listed(tmp_path: Path) -> None:
    found = Quantized.make(tmp_path, "vit")
    report = floating_weights(found.deployed("fast").model, found.tiny.operators)
    types = {entry["type"] for entry in report["operators"]}
    assert types.isdisjoint({"PPQBiasFusedMatMul", "Gemm", "Conv", "MatMul"}) or report["share"] < 0.2
    assert 0 < report["share"] < 0.3
