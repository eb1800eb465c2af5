"""Every family in PPQ: in floating point, and quantized by the recipes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES
from tiny_models import random_images
from tiny_quantized import MOVING, Tiny
from torch import Tensor, nn

from ptq2themoon.quantize.simulation import SimulatedModel

STILL = MOVING | {"Pad", "Flatten"}  # neither computes


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Tiny]:
    folder = tmp_path_factory.mktemp(request.param)
    return FAMILIES[request.param](), Tiny.of_family(request.param, folder)


def pictures(tiny: Tiny, count: int, seed: int = 0) -> Tensor:
    dims = onnx.load(tiny.path).graph.input[0].type.tensor_type.shape.dim
    return torch.from_numpy(random_images(count, *(d.dim_value for d in dims[1:]), seed=seed))


@pytest.mark.parametrize("batch", [1, 3])
def test_ppq_computes_what_the_module_does(family: tuple[nn.Module, Tiny], batch: int) -> None:
    module, tiny = family
    images = pictures(tiny, batch)
    with torch.inference_mode():
        expected = module(images).numpy()
    np.testing.assert_allclose(SimulatedModel(tiny.graph, "cpu")(images).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("recipe", ["vanilla", "layernorm"])
def test_a_recipe_calibrates_and_runs(family: tuple[nn.Module, Tiny], recipe: str) -> None:
    _, tiny = family
    quantized, _ = tiny.calibrated(recipe, batches=[pictures(tiny, 4, seed) for seed in (1, 2)])
    exact, found = SimulatedModel(tiny.graph, "cpu")(pictures(tiny, 3)), quantized(pictures(tiny, 3))
    assert torch.isfinite(found).all()
    assert not torch.equal(found, exact)
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=-1)
    assert (cosine > 0.9).all()


def test_vanilla_leaves_no_operator_that_computes_in_float(family: tuple[nn.Module, Tiny]) -> None:
    _, tiny = family
    planned = {item.operator.name: item for item in tiny.plan("vanilla")}
    assert {o.name for o in tiny.operators if o.type not in STILL} == planned.keys()
    for name, item in planned.items():
        node = tiny.nodes[name]
        inputs = [tensor.position for tensor in item.tensors if tensor.operand != "output"]
        assert inputs == list(range(1 if node.type == "ReduceMean" else len(node.input_ranks)))
        assert [tensor.position for tensor in item.tensors if tensor.operand == "output"] == [0]


def test_layernorm_has_a_scale_a_channel_where_its_roles_are(family: tuple[nn.Module, Tiny]) -> None:
    _, tiny = family
    wanted = {"norm1", "norm2", "norm", "residual1", "residual2"}
    for item in tiny.plan("layernorm"):
        rank = tiny.nodes[item.operator.name].output_ranks[0]
        axes = {tensor.axis for tensor in item.tensors if tensor.operand == "output"}
        assert axes == ({rank - 1} if item.operator.role in wanted else {None})
