"""Every opset gives the same fused graph, those of before today's Softmax too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fused_result import Result, result
from tiny_models import random_images, run_all, tiny_module, to_onnx, written
from tiny_separate import Separate

from ptq2themoon.graph.forms.normalise import normalise

MODULES = {"one layer": tiny_module, "three layers": Separate}


def fused(name: str, opset: int, folder: Path, free: bool = True) -> Result:
    path = folder / f"{opset}.onnx"
    onnx.save(to_onnx(MODULES[name]().eval(), opset=opset, dynamic_batch=free), path)
    return result(path, random_images(3))


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("opset", [9, 10, 11, 12, 15, 20])
@pytest.mark.parametrize("name", MODULES)
def test_same_graph_at_every_opset(name: str, opset: int, free: bool, tmp_path: Path) -> None:
    plain, found = fused(name, 13, tmp_path), fused(name, opset, tmp_path, free)
    assert (found.counts, found.places, found.attention) == (plain.counts, plain.places, plain.attention)
    assert found.attention["blocks"][0]["heads"] == 2
    np.testing.assert_allclose(found.runtime, plain.runtime, atol=1e-5)
    np.testing.assert_allclose(found.simulated, plain.runtime, atol=1e-4)


def test_a_softmax_over_more_than_the_last_axis_stays_as_it_is() -> None:
    """Before opset 13 `axis` says where the columns begin."""
    model = written("y = Softmax <axis = 1> (x)", {})
    model.opset_import[0].version = 12
    normalised = normalise(model)
    assert "Flatten" in {node.op_type for node in normalised.graph.node}
    images = random_images(3, 4, 8)
    np.testing.assert_allclose(run_all(normalised, images)[0], run_all(model, images)[0], atol=1e-6)
