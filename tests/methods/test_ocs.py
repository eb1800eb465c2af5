"""Outlier channel splitting: shares add up, nothing changes without clipping, and ranges get smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_methods import FLOATING_WEIGHTS, Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods.ocs import picked, shares
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers.base import along
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BOTH = {"weights": 0.05, "activations": 0.05}
TENSORWISE = {"select": {"operand": "weight"}, "granularity": "per-tensor"}


def ocs(*rules: dict[str, Any], base: str = "papers", before: Any = (), **chosen: Any) -> Recipe:
    return recipe(base, *rules, methods=[*before, {"name": "ocs", **chosen}])


@pytest.fixture(scope="module", params=["vit", "swin", "mobilevit"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of_family(request.param)


def widths(model: QuantizedModel) -> dict[str, int]:
    return {layer.name: len(layer.weight) for layer in linear_layers(model.graph())}


# Shares -------------------------------------------------------------------------------------------

WEIGHTS = hnp.arrays(np.float64, (6, 3), elements=st.floats(-8, 8))


@settings(deadline=None)
@given(WEIGHTS, hnp.arrays(np.int64, 6, elements=st.integers(1, 4)), st.floats(0.05, 2))
def test_codes_of_the_shares_add_up_to_the_whole_s(
    weight: np.ndarray, counts: np.ndarray, step: float
) -> None:
    """Equation 6 for any number of shares; a value midway between two codes may fall to either."""
    parts = shares(weight, counts, np.array(step))
    order = np.repeat(np.arange(6), counts)
    sums, codes = np.zeros_like(weight), np.zeros_like(weight)
    np.add.at(sums, order, parts)
    np.testing.assert_allclose(sums, weight, atol=1e-12)
    np.add.at(codes, order, np.rint(parts / step))
    whole = weight / step
    midway = np.abs(whole - np.floor(whole) - 0.5) < 1e-6
    np.testing.assert_array_equal(codes[~midway], np.rint(whole)[~midway])


def test_two_shares_are_the_paper_s() -> None:
    parts = shares(np.array([[3.0, -1.0]]), np.array([2]), np.array([0.5, 0.25]))
    np.testing.assert_allclose(
        parts, [[(3 - 0.25) / 2, (-1 - 0.125) / 2], [(3 + 0.25) / 2, (-1 + 0.125) / 2]]
    )


def test_the_channel_with_the_largest_value_is_picked_and_picked_again() -> None:
    weight = np.array([[1.0, 0.5], [9.0, 0.1], [2.0, -4.0], [0.3, 0.2]])
    assert picked(weight, 0.25, each=False).tolist() == [1, 2, 1, 1]
    assert picked(weight, 0.5, each=False).tolist() == [1, 3, 1, 1]  # 4.5 is more than 4
    assert picked(weight, 0.75, each=False).tolist() == [1, 3, 2, 1]
    assert picked(weight, 0.0, each=True).tolist() == [1, 1, 1, 1]
    assert picked(weight, 0.25, each=True).tolist() == [1, 2, 1, 1]  # 9 to 4.5, more than 4 to 2
    assert picked(weight, 0.5, each=True).tolist() == [1, 2, 2, 1]  # 4 to 2, more than 4.5 to 3


# Invariance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [{}, {"activations": 0.05, "weights": 0}, BOTH], ids=str)
def test_the_rewritten_graph_is_the_reference_in_floating_point(case: Case, chosen: dict[str, float]) -> None:
    model = case.quantized(ocs(**chosen), (4, 4))
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    before, after = widths(case.quantized(recipe("papers"))), widths(model)
    assert before != after
    roles = {o.name: o.role for o in model.operators if not o.name.endswith("/split")}
    assert roles == {o.name: o.role for o in case.operators}


@pytest.mark.parametrize("rules", [[], [TENSORWISE]], ids=["output channels", "tensor"])
def test_nothing_changes_without_clipping(vit: Case, rules: list[dict[str, Any]]) -> None:
    """With the scales of before, the shares of a weight add up to the whole on its grid, bit for bit.

    But for the greatest weight of each scale: it lies at code 7.5, clipped to 7, and its shares are not.
    """
    model = vit.quantized(ocs(*rules, weights=0.1, shrink=False), (4, 8))
    before = {layer.name: layer for layer in linear_layers(vit.quantized(recipe("papers")).graph())}
    quantizers, graph = dict(model.slots()), model.graph()
    for layer in linear_layers(graph):
        quantizer = quantizers[layer.name, "weight", 1].ready()  # type: ignore[index]
        (gather,) = (node for node in graph.nodes if node.name == f"{layer.name}/split")
        order = torch.tensor(graph.constants[gather.input[1]])
        whole, parts = (torch.tensor(each.stored(each.weight)) for each in (before[layer.name], layer))
        found = torch.zeros_like(whole).index_add_(layer.input_axis, order, quantizer(parts))
        steps = whole / along(quantizer.scale, quantizer.axis, 2)
        off = (found - quantizer(whole)) / along(quantizer.scale, quantizer.axis, 2)
        inside = steps.abs() < 7.49
        assert inside.float().mean() > 0.9
        assert off[inside].abs().max() < 1e-4
        assert off.abs().max() < 1.001


@pytest.mark.parametrize("chosen", [{"weights": 0}, {"weights": 0, "activations": 0.0}], ids=str)
def test_with_no_channels_more_it_is_the_plain_recipe(vit: Case, chosen: dict[str, float]) -> None:
    model = vit.quantized(ocs(**chosen), (4, 4))
    assert torch.equal(vit.logits(model), vit.logits(vit.quantized(recipe("papers"), (4, 4))))
    assert not model.rewrite


# What is split ------------------------------------------------------------------------------------


def test_as_many_channels_as_the_share_says(vit: Case) -> None:
    before = widths(vit.quantized(recipe("papers")))
    for ratio in (0.01, 0.1):
        after = widths(vit.quantized(ocs(weights=ratio)))
        assert after == {name: n + int(np.ceil(ratio * n)) for name, n in before.items()}


def test_activations_are_split_where_something_can_make_the_shares(vit: Case) -> None:
    before, after = (
        widths(vit.quantized(recipe("papers"))),
        widths(vit.quantized(ocs(weights=0, activations=0.1))),
    )
    split = {name.rpartition(".")[2] for name, n in after.items() if n > before[name]}
    assert split == {"qkv", "fc1", "proj"}


def test_ranges_of_weights_shrink(vit: Case) -> None:
    def scales(chosen: Recipe) -> dict[str, float]:
        model = vit.quantized(chosen, (4, 8))
        return {s.operator: float(t.ready().scale.sum()) for s, t in model.slots() if s.operand == "weight"}

    for rules in ([], [TENSORWISE]):
        before, after = scales(recipe("papers", *rules)), scales(ocs(*rules, weights=0.1))
        linear = widths(vit.quantized(recipe("papers")))
        assert all(after[name] < before[name] for name in linear)


def test_an_outlier_channel_of_activations_loses_its_harm() -> None:
    """Two channels of each LayerNorm are stretched: per tensor they take all the steps."""
    from families import FAMILIES, image_shape

    module = FAMILIES["vit"]()
    with torch.no_grad():
        for block in module.blocks:
            for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[:2] *= 8
                norm.bias[:2] *= 8
                layer.weight[:, :2] /= 8
    case = Case.of(module, image_shape("vit"))
    rules = [FLOATING_WEIGHTS]
    plain = case.sqnr(recipe("papers", *rules), (8, 5))
    assert case.sqnr(ocs(*rules, weights=0, activations=0.3), (8, 5)) > plain + 3


def test_split_weights_gain_at_three_bits(vit: Case) -> None:
    plain = vit.sqnr(recipe("papers", TENSORWISE), (3, 8))
    assert vit.sqnr(ocs(TENSORWISE, weights=0.1), (3, 8)) > plain


# With others --------------------------------------------------------------------------------------


def test_repq_vit_after_it_and_integer_kernels(vit: Case) -> None:
    model = vit.quantized(ocs(**BOTH), (8, 8))
    deployed = deploy(model.edited, model.quantized, "fast")
    plain = vit.quantized(recipe("papers"), (8, 8))
    base = deploy(plain.edited, plain.quantized, "fast")
    assert {n for n, p in deployed.placements.items() if p.runs == "integer"} == {
        n for n, p in base.placements.items() if p.runs == "integer"
    }
    assert sqnr(vit.logits(model), vit.floating()) > 25


def test_a_method_that_chose_quantizers_before_it_is_refused(vit: Case) -> None:
    repq = {"name": "repq_vit", "log_sqrt2": False}
    with pytest.raises(UserError, match=r"^ocs: \w+ has chosen .* say activations: 0 for ocs$"):
        vit.quantized(ocs(before=[repq], activations=0.05))


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    with pytest.raises(UserError, match=r"^ocs: the recipe quantizes no linear layer's weights"):
        vit.quantized(ocs(FLOATING_WEIGHTS))
