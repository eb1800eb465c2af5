"""Whatever exporter wrote the file: the fused graph of the plain export of the same weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from exporters import EXPORTERS, PLAIN
from fused_result import Result, result
from tiny_models import random_images, tiny_module
from tiny_separate import Separate, SeparateBlock
from torch import nn

from ptq2themoon.graph.editing.onnx_run import TOLERANCE


class TanhBlock(SeparateBlock):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU(approximate="tanh")


MODULES = {
    "timm": tiny_module,  # one layer for query, key and value
    "apart": Separate,  # three, as transformers writes it
    "tanh": lambda: Separate(TanhBlock),
}


@pytest.fixture(scope="module", params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]().eval()


@pytest.fixture(scope="module")
def plain(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Result:
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    EXPORTERS[PLAIN](module, torch.zeros(1, 1, 16, 16), path)
    return result(path, random_images(3))


def test_the_plain_export_is_whole(plain: Result) -> None:
    linear = plain.counts["MatMul+Add"]
    assert plain.counts == {"LayerNorm": 5, "MatMul+Add": linear, "GELU": 2}
    assert linear == (12 if ("PPQBiasFusedMatMul", "q", 0) in plain.places else 8)
    assert None not in {role for _, role, _ in plain.places}
    scales = [place for place in plain.places.elements() if place[1] == "attn_scale"]
    assert scales == [("Mul", "attn_scale", 0), ("Mul", "attn_scale", 1)]


@pytest.mark.parametrize("exporter", [name for name in EXPORTERS if name != PLAIN])
def test_every_exporter_gives_the_same(
    exporter: str, module: nn.Module, plain: Result, tmp_path: Path
) -> None:
    path, images = tmp_path / "model.onnx", random_images(3)
    EXPORTERS[exporter](module, torch.zeros(1, 1, 16, 16), path)
    got = result(path, images)
    assert got.counts == plain.counts
    assert got.places == plain.places
    assert got.order == plain.order
    assert got.attention == plain.attention
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    assert np.abs(expected).max() > 0.1
    for logits in (plain.runtime, got.runtime, got.simulated):
        assert np.abs(logits - expected).max() <= TOLERANCE


def test_a_scale_folded_into_the_weights_leaves_all_else(tmp_path: Path) -> None:
    """Nothing is left to scale, so that the operator is missing, and nothing else."""
    module = tiny_module()
    EXPORTERS[PLAIN](module, torch.zeros(1, 1, 16, 16), tmp_path / "plain.onnx")
    for block in module.blocks:
        rows = block.attn.qkv.weight.shape[0] // 3  # of the queries
        block.attn.qkv.weight.data[:rows] *= block.attn.scale
        block.attn.qkv.bias.data[:rows] *= block.attn.scale
        block.attn.scale = 1.0
    EXPORTERS[PLAIN](module, torch.zeros(1, 1, 16, 16), tmp_path / "folded.onnx")
    images = random_images(3)
    plain, folded = (result(tmp_path / f"{name}.onnx", images) for name in ("plain", "folded"))
    assert folded.counts == plain.counts
    missing = plain.places - folded.places
    assert missing == Counter({("Mul", "attn_scale", 0): 1, ("Mul", "attn_scale", 1): 1})
    assert not folded.places - plain.places
    for logits in (folded.runtime, folded.simulated):
        assert np.abs(logits - plain.runtime).max() <= TOLERANCE
