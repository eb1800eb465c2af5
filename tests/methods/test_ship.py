"""The recipe `ship`: integer kernels for all products, no loss where channels are of very different size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from families import FAMILIES, VIT, image_shape, made
from stretched import stretched
from tiny_methods import Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import run_onnx, runner, session
from ptq2themoon.quantize.simulation import SimulatedModel

SHIP = recipe("ship")
PLAIN = recipe("ship", methods=[])
WITH_RELU = recipe("ship_relu")


def in_runtime(case: Case, chosen: object) -> float:
    """SQNR in dB of the fast INT8 model's output, in ONNX Runtime."""
    model = case.quantized(chosen)  # type: ignore[arg-type]
    deployed = deploy(model.edited, model.quantized, "fast")
    assert {place.runs for place in deployed.placements.values()} == {"integer"}
    found = runner(session(deployed.model, quantized=True))(case.images.numpy())
    return sqnr(torch.from_numpy(found), torch.from_numpy(run_onnx(case.reference, case.images.numpy())))


@pytest.mark.parametrize("family", ["vit", "swin", "deit_distilled", "dinov2"])
def test_stretched_layernorms_cost_it_nothing(family: str) -> None:
    plain = Case.of_family(family)
    hard = Case.of(stretched(FAMILIES[family]()), image_shape(family))
    assert in_runtime(hard, SHIP) > in_runtime(plain, SHIP) - 1
    assert in_runtime(hard, SHIP) > in_runtime(hard, PLAIN) + 5
    assert in_runtime(plain, SHIP) > in_runtime(plain, PLAIN)


def test_a_loud_channel_after_gelu_costs_it_little() -> None:
    plain, module = Case.of_family("vit"), FAMILIES["vit"]()
    with torch.no_grad():
        module.blocks[0].mlp.fc1.bias[9] = 60  # type: ignore[union-attr, index]
    hard = Case.of(module, image_shape("vit"))
    assert in_runtime(hard, SHIP) > in_runtime(hard, PLAIN) + 5
    assert in_runtime(hard, SHIP) > in_runtime(plain, PLAIN) - 1


def test_with_relu_all_products_run_in_integers() -> None:
    """Of three MLPs ship multiplies before two, which keep their GELU."""
    three = [made("vit_tiny_patch16_224", **{**VIT, "depth": 3}) for _ in range(2)]
    plain, hard = (Case.of(module, image_shape("vit")) for module in (three[0], stretched(three[1])))
    types = Counter(node.op_type for node in plain.quantized(WITH_RELU).edited.graph.node)
    assert types["Relu"] == 1
    assert in_runtime(plain, WITH_RELU) > 10
    assert in_runtime(hard, WITH_RELU) > in_runtime(plain, WITH_RELU) - 2


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_quantizes_every_family(family: str, tmp_path: Path) -> None:
    case = Case.of_family(family)
    without_head = {"select": {"role": "head"}, "optional": True, "quantize": True}
    model = case.quantized(recipe("ship", without_head))
    rewritten, wanted = SimulatedModel(model.rewritten, "cpu")(case.images), case.floating()
    assert (rewritten - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert sqnr(case.logits(model), wanted) > 20
