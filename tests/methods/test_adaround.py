"""AdaRound: the losses of a loop written from the paper, and weights that are codes of the same grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_learning import Rounding, losses, read_by
from tiny_methods import Case, recipe, sqnr
from tiny_models import tiny_module
from torch.nn import functional as F

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform

STEPS = 20
LAYERS = [f"blocks.{i}.{role}" for i in (0, 1) for role in ("qkv", "proj", "fc1", "fc2")] + ["head"]


def adaround(**settings: Any) -> Any:
    return recipe("adaround", methods=[{"name": "adaround", "iterations": STEPS, **settings}])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


def test_each_layer_has_the_losses_of_the_paper_s_loop(case: Case, seen: dict[str, list[float]]) -> None:
    model = case.quantized(adaround(), (4, 4))
    assert list(seen) == ["before the blocks", *LAYERS]
    plain = {layer.name: layer for layer in linear_layers(case.quantized(recipe("papers"), (4, 4)).graph())}
    for number, name in enumerate(LAYERS, start=2):  # the first unit is the patch embedding
        layer, quantizers = plain[name], {slot: t.ready() for slot, t in model.slots()}
        of_weight = quantizers[slot_of(model, name, "weight")]
        assert isinstance(of_weight, Uniform)
        soft = Rounding(torch.tensor(layer.weight.T.copy()), of_weight)
        x = quantizers[slot_of(model, name, "input")](read_by(case, model, name))
        exact = F.linear(read_by(case, None, name), torch.tensor(layer.weight.T), torch.tensor(layer.bias))
        bias = torch.tensor(layer.bias)

        def loss(
            index: torch.Tensor, x: Any = x, soft: Any = soft, bias: Any = bias, exact: Any = exact
        ) -> Any:
            return (F.linear(x[index], soft.weight(), bias) - exact[index]).square().sum(-1).mean()

        generator = torch.Generator().manual_seed(number)
        wanted = losses(loss, [soft], [([soft.v], 1e-2)], generator, len(case.images), 16, STEPS)
        assert seen[name] == pytest.approx(wanted, rel=2e-3), name


def slot_of(model: QuantizedModel, operator: str, operand: str) -> Any:
    (slot,) = (s for s, _ in model.slots() if s.operator == operator and s.operand == operand)
    return slot


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_weights_are_codes_one_step_from_the_nearest_at_most(case: Case, unit: str) -> None:
    model, base = (case.quantized(r, (3, 3)) for r in (adaround(unit=unit), recipe("papers")))
    before = {layer.name: layer for layer in linear_layers(base.graph())}
    moved = 0
    for layer in linear_layers(model.graph()):
        quantizer: Any = dict(model.slots())[slot_of(model, layer.name, "weight")].ready()
        scale = quantizer.scale.numpy()
        codes = layer.weight / scale
        assert abs(codes - codes.round()).max() < 1e-4
        assert abs(layer.weight - before[layer.name].weight).max() <= 1.001 * scale.max()
        moved += int((codes.round() != (before[layer.name].weight / scale).round().clip(-4, 3)).sum())
    assert moved > 0
    assert [s for s, _ in model.slots()] == [s for s, _ in base.slots()]
    assert all(a.ready() == b.ready() for (_, a), (_, b) in zip(model.slots(), base.slots(), strict=True))


def test_trained_long_it_is_nearer_to_floating_point_than_rounding_to_the_nearest(case: Case) -> None:
    activations = {"select": {"operand": "input"}, "quantize": False}
    base = recipe("papers", activations)
    learned = recipe("papers", activations, methods=[{"name": "adaround", "iterations": 150}])
    floating = case.floating()
    found = [sqnr(case.logits(case.quantized(one, (3, 8))), floating) for one in (base, learned)]
    assert found[1] > found[0] + 2
