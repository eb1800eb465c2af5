"""Whatever exporter wrote the file: the fused graph of the plain export of the same weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from exporters import EXPORTERS, PLAIN
from tiny_models import random_images, run_all, tiny_module
from tiny_separate import Separate, SeparateBlock
from torch import nn

from ptq2themoon.graph.fuse import count_fused, fuse
from ptq2themoon.graph.normalise import normalise
from ptq2themoon.graph.roles import find_roles
from ptq2themoon.quantize.simulation import SimulatedModel

TOLERANCE = 1e-4


class TanhBlock(SeparateBlock):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU(approximate="tanh")


MODULES = {
    "timm": tiny_module,  # one layer for query, key and value
    "apart": Separate,  # three, as transformers writes it
    "tanh": lambda: Separate(TanhBlock),
}


class Result(NamedTuple):
    """A fused graph, in the terms in which exporters must agree."""

    counts: dict[str, int]
    places: Counter[tuple[str, str | None, int | None]]
    order: list[tuple[str | None, int | None]]
    runtime: np.ndarray
    simulated: np.ndarray


def result(path: Path, images: np.ndarray) -> Result:
    fused, _ = fuse(normalise(onnx.load(path)))
    onnx.checker.check_model(fused, full_check=True)
    operators = [o for o in find_roles(fused) if o.role != "other"]
    out = path.with_suffix(".fused.onnx")
    onnx.save(fused, out)
    return Result(
        count_fused(fused),
        Counter((o.type, o.role, o.block) for o in operators),
        [(o.role, o.block) for o in operators if o.role not in ("q", "k", "v", "attn_scale")],
        run_all(fused, images)[0],
        SimulatedModel(out, "cpu")(torch.from_numpy(images)).numpy(),
    )


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
