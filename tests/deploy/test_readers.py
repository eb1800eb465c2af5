"""Integers that several operators read: ONNX Runtime joins a DequantizeLinear with one product at most."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_deployed import Quantized, kernels, sqnr
from tiny_separate import Separate, SeparateBlock
from torch import nn

from ptq2themoon.deploy.compare import compare
from ptq2themoon.graph.editing.onnx_run import INTEGER_KERNELS
from ptq2themoon.vocabulary.modes import Mode


class NormAfter(SeparateBlock):
    """Layers and the sum read the residual stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.joins, self.before = self.before, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.joins(self.attend(x)) + x
        return self.after(self.down(self.act(self.up(x)))) + x


BLOCKS = {"three layers": SeparateBlock, "layers and a sum": NormAfter}


@pytest.fixture(scope="module", params=BLOCKS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    module = Separate(BLOCKS[request.param])
    made = Quantized.of_module(tmp_path_factory.mktemp("shared"), module, (1, 16, 16))
    assert {operator.role for operator in made.tiny.operators} >= {"q", "k", "v"}
    return made


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_all_run_on_integer_kernels(shared: Quantized, mode: Mode, tmp_path: Path) -> None:
    made = shared.deployed(mode)
    found = kernels(made.model, tmp_path)
    products = made.products()
    assert products["float"] == (1 if mode == "faithful" else 0)  # the patch embedding
    assert sum(found[kernel] for kernel in INTEGER_KERNELS) == products["integer"]


def test_faithful_codes_stay(shared: Quantized) -> None:
    differences = compare(shared.model, shared.quantized, shared.simulated, shared.images, "faithful")
    assert [d.operator for d in differences if d.departs] == []
    simulated = shared.simulated(shared.images).numpy()
    error = sqnr(simulated, shared.floating())
    assert sqnr(shared.run(shared.deployed("faithful")), simulated) > error + 6
