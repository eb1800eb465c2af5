"""Products that read one tensor: ONNX Runtime joins a DequantizeLinear with one product at most."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_deployed import Quantized, kernels, sqnr
from tiny_separate import Separate

from ptq2themoon.deploy.compare import compare
from ptq2themoon.graph.editing.onnx_run import INTEGER_KERNELS
from ptq2themoon.vocabulary.modes import Mode


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Queries, keys and values are three layers."""
    made = Quantized.of_module(tmp_path_factory.mktemp("separate"), Separate(), (1, 16, 16))
    assert {operator.role for operator in made.tiny.operators} >= {"q", "k", "v"}
    return made


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_all_run_on_integer_kernels(separate: Quantized, mode: Mode, tmp_path: Path) -> None:
    made = separate.deployed(mode)
    found = kernels(made.model, tmp_path)
    products = made.products()
    assert products["float"] == (1 if mode == "faithful" else 0)  # the patch embedding
    assert sum(found[kernel] for kernel in INTEGER_KERNELS) == products["integer"]


def test_faithful_codes_stay(separate: Quantized) -> None:
    differences = compare(separate.model, separate.quantized, separate.simulated, separate.images, "faithful")
    assert [d.operator for d in differences if d.departs] == []
    simulated = separate.simulated(separate.images).numpy()
    error = sqnr(simulated, separate.floating())
    assert sqnr(separate.run(separate.deployed("faithful")), simulated) > error + 6
