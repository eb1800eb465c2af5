"""Mixed precision: sensitivities by a plain computation, the best bits within a budget, a target met."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe
from torch import Tensor

from ptq2themoon.graph.meaning.work import multiply_accumulates
from ptq2themoon.methods.mixed_precision import (
    MixedPrecisionSettings,
    Trials,
    cheapest_step,
    measure,
    within_budget,
)
from ptq2themoon.quantize.bit_sites import Products, Site, places_of, quantizers, sites_of
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.qparams import read_qparams, write_qparams
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 8)
CHOICES = [3, 4, 6]


def mixed(*rules: dict[str, Any], **settings: Any) -> Recipe:
    method = {"name": "mixed_precision", "choices": CHOICES, **settings}
    return recipe("papers", *rules, methods=[method])


def begun(
    case: Case, bits: tuple[int, int] = BITS, base: Recipe | None = None
) -> tuple[QuantizedModel, Tools]:
    model = QuantizedModel(case.reference, list(case.operators))
    return model, Tools(base or recipe("papers"), bits, case.images.split(8), 0, "cpu")


@pytest.fixture(scope="module", params=["size", "operations"])
def measured(request: pytest.FixtureRequest, vit: Case) -> tuple[str, list[Products]]:
    """Places of the small ViT with what 20 images say of them."""
    model, tools = begun(vit)
    places = places_of(model, tools, with_inputs=request.param == "operations")
    tried = quantizers(model, tools, places, CHOICES)
    measure(model, tools, places, tried, MixedPrecisionSettings(images=20))
    return request.param, places


def bits_found(model: QuantizedModel) -> dict[Slot, int]:
    return {slot: tensor.ready().bits for slot, tensor in model.slots()}


def sizes_of(model: QuantizedModel) -> dict[Slot, int]:
    """Elements of the weights."""
    constants = {t.name: numpy_helper.to_array(t).size for t in model.edited.graph.initializer}
    nodes = {node.name: node for node in model.edited.graph.node}
    return {
        slot: constants[nodes[slot.operator].input[slot.position]]
        for slot, tensor in model.slots()
        if tensor.operand == "weight"
    }


# Sensitivities --------------------------------------------------------------------------------------


def test_sites_are_weights_and_for_operations_both_factors(measured: tuple[str, list[Products]]) -> None:
    cost, places = measured
    found = [(site.role, site.block, site.operand) for site in sites_of(places)]
    layers = [(role, block) for block in (0, 1) for role in ("qkv", "proj", "fc1", "fc2")]
    weights = [("patch_embed", None), *layers, ("head", None)]
    assert [each[:2] for each in found if each[2] == "weight"] == sorted(weights, key=_order)
    attention = [(role, block) for block in (0, 1) for role in ("attn_scores", "attn_context")]
    inputs = [*layers, ("head", None), *attention, *attention] if cost == "operations" else []
    # The patch embedding's input has bits of its own, by a rule of `papers`.
    assert sorted(each[:2] for each in found if each[2] == "input") == sorted(inputs, key=str) or not inputs
    assert len(found) == len(weights) + len(inputs)


def _order(place: tuple[str, int | None]) -> tuple[float, int]:
    role, block = place
    inside = ("qkv", "proj", "fc1", "fc2")
    if block is None:
        return (-1, 0) if role == "patch_embed" else (9, 0)
    return block, inside.index(role)


def test_a_sensitivity_is_the_squared_error_of_the_output_with_the_site_alone_quantized(
    measured: tuple[str, list[Products]], vit: Case
) -> None:
    """By weights put into the graph, and by another way to quantize one input: a model with it alone."""
    _, places = measured
    images = vit.images[:20]
    wanted = SimulatedModel(vit.reference, "cpu")(images)
    for site in list(sites_of(places))[2::7]:
        for index, bits in enumerate(CHOICES):
            rules = [
                {"select": {}, "quantize": False},
                {"select": site.select, "quantize": True, "bits": bits},
            ]
            found = vit.logits(vit.quantized(recipe("papers", *rules)))[:20]
            error = float((found - wanted).double().square().sum())
            assert site.errors[index] == pytest.approx(error, rel=1e-3, abs=1e-9)


def test_kl_is_that_of_the_classes_probabilities() -> None:
    from ptq2themoon.quantize.sensitivity import kl

    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(5, 7, generator=generator) for _ in range(2))
    p, q = wanted.double().softmax(1), found.double().softmax(1)
    assert kl(found, wanted) == pytest.approx(float((p * (p / q).log()).sum()))
    assert kl(wanted, wanted) == 0


# A budget -------------------------------------------------------------------------------------------


def few(cost: str, places: list[Products]) -> list[Products]:
    """Few enough to try every way."""
    return places[1:7] if cost == "size" else places[1:4]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_no_other_bits_within_the_budget_have_a_less_sum(
    measured: tuple[str, list[Products]], share: float
) -> None:
    cost, places = measured
    places = few(cost, places)
    sites = list(sites_of(places))
    units = sum(place.unit(cost) for place in places)

    def total(bits: tuple[int, ...]) -> tuple[float, float]:
        given = dict(zip((site.key for site in sites), bits, strict=True))
        spent = sum(p.cost(cost, [given[site.key] for site in p.sites]) for p in places)
        return spent / units, sum(site.errors[CHOICES.index(b)] for site, b in zip(sites, bits, strict=True))

    ways = {bits: total(bits) for bits in product(CHOICES, repeat=len(sites))}
    least, most = (ways[(edge,) * len(sites)][0] for edge in (CHOICES[0], CHOICES[-1]))
    budget = least + share * (most - least)
    found = within_budget(places, CHOICES, cost, budget)
    spent, loss = ways[tuple(CHOICES[found[site.key]] for site in sites)]
    assert spent <= budget
    assert loss == pytest.approx(min(loss for spent, loss in ways.values() if spent <= budget))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_mean_bits_of_weights_keep_the_budget_and_inputs_keep_theirs(family: str) -> None:
    case = Case.of_family(family)
    model = case.quantized(mixed(budget=4.2, choices=[3, 4, 5, 6]), BITS)
    sizes, bits = sizes_of(model), bits_found(model)
    mean = sum(bits[slot] * size for slot, size in sizes.items()) / sum(sizes.values())
    assert 4.0 < mean <= 4.2
    assert len({bits[slot] for slot in sizes}) > 1
    assert {bits[slot] for slot in bits if slot not in sizes} == {8}


def test_bit_operations_keep_the_budget(vit: Case) -> None:
    model = vit.quantized(mixed(cost="operations", budget=20.0), BITS)
    work, bits = multiply_accumulates(vit.reference), bits_found(model)
    spent = total = 0
    for name, count in work.items():
        factors = [each for slot, each in bits.items() if slot.operator == name]
        assert len(factors) == 2
        spent, total = spent + count * factors[0] * factors[1], total + count
    patches = next(o.name for o in vit.operators if o.role == "patch_embed")
    assert bits[Slot(patches, "input", 0)] == 8
    assert 15 < spent / total <= 20


def test_without_a_budget_it_is_the_recipe_s_own_size(vit: Case) -> None:
    model = vit.quantized(mixed(), BITS)
    sizes, bits = sizes_of(model), bits_found(model)
    assert sum(bits[slot] * size for slot, size in sizes.items()) <= 4 * sum(sizes.values())


@pytest.mark.parametrize("settings", [
    {"choices": [4]}, {"choices": [4], "budget": 4.0}, {"choices": [2, 3, 4], "budget": 8.0},
    {"choices": [4], "cost": "operations", "budget": 64.0}, {"choices": [4], "target": 1.0},
])  # fmt: skip
def test_one_choice_or_a_budget_for_the_most_bits_is_the_base_to_the_bit(
    vit: Case, settings: dict[str, Any]
) -> None:
    bits = (4, 4)
    plain = vit.logits(vit.quantized(recipe("papers"), bits))
    assert torch.equal(vit.logits(vit.quantized(mixed(**settings), bits)), plain)


def test_more_size_gives_less_error(vit: Case) -> None:
    logits = vit.floating()
    errors = [
        float((vit.logits(vit.quantized(mixed(budget=b), BITS)) - logits).square().mean())
        for b in (3.0, 4.0, 6.0)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_bits_are_in_the_files_and_come_back(vit: Case, tmp_path: Path) -> None:
    from tiny_quantized import HEADER

    model = vit.quantized(mixed(budget=4.5), BITS)
    paths = tmp_path / "qparams.json", tmp_path / "qparams.safetensors"
    write_qparams(model, HEADER, *paths)
    read = read_qparams(*paths).model(vit.reference)
    assert bits_found(read) == bits_found(model)
    assert len(set(bits_found(model).values())) > 2
    assert torch.equal(vit.logits(read), vit.logits(model))


def test_a_rule_of_the_recipe_and_what_is_fixed_keep_their_bits(vit: Case) -> None:
    rule = {"select": {"role": "fc1", "block": 0, "operand": "weight"}, "bits": 7}
    model = vit.quantized(mixed(rule, budget=3.5), BITS)
    fc1 = next(o.name for o in vit.operators if (o.role, o.block) == ("fc1", 0))
    weight = Slot(fc1, "weight", 1)
    assert bits_found(model)[weight] == 7
    fresh, tools = begun(vit)

    def chosen() -> set[Slot]:
        return {slot for site in sites_of(places_of(fresh, tools, with_inputs=False)) for slot in site.slots}

    assert weight in chosen()
    fresh.fixed[weight] = dict(model.slots())[weight].ready()
    assert weight not in chosen()


# A target -------------------------------------------------------------------------------------------


def agreement(case: Case, model: QuantizedModel, images: Tensor) -> float:
    found, wanted = case.logits(model)[: len(images)], SimulatedModel(case.reference, "cpu")(images)
    return float((found.argmax(1) == wanted.argmax(1)).double().mean()) * 100


@pytest.mark.parametrize(("cost", "target"), [("size", 90.0), ("operations", 75.0)])
def test_the_target_is_met_on_the_calibration_images_with_few_bits(
    vit: Case, cost: str, target: float
) -> None:
    model = vit.quantized(mixed(choices=[2, 4, 8], cost=cost, target=target), (8, 8))
    assert agreement(vit, model, vit.images) >= target
    sizes, bits = sizes_of(model), bits_found(model)
    assert sum(bits[slot] * size for slot, size in sizes.items()) < 6 * sum(sizes.values())
    assert (len({bits[slot] for slot in bits if slot not in sizes}) > 1) == (cost == "operations")


def test_a_trial_is_the_quantized_model(vit: Case) -> None:
    """Calibrated as the run will be, its agreement is that of the model with the same rules."""
    model, tools = begun(vit, (4, 4))
    places = places_of(model, tools, with_inputs=False)
    tried = quantizers(model, tools, places, CHOICES)
    trials = Trials(model, tools, tried, MixedPrecisionSettings(choices=CHOICES, target=50))
    found = {site.key: number % 2 for number, site in enumerate(sites_of(places))}
    rules = [{"select": site.select, "bits": CHOICES[found[site.key]]} for site in sites_of(places)]
    wanted = agreement(vit, vit.quantized(recipe("papers", *rules), (4, 4)), vit.images)
    assert trials.agreement(found, calibrated=True) == pytest.approx(wanted)
    assert trials.agreement(found) == pytest.approx(wanted, abs=25)


def site(name: str, size: int, errors: list[float]) -> Site:
    return Site(name, 0, "weight", 1, 4, size=size, errors=errors)


def test_the_cheapest_step_is_the_one_of_least_sensitivity_for_what_it_saves() -> None:
    one, other = site("fc1", 100, [9.0, 2.0, 1.0]), site("fc2", 10, [5.0, 1.2, 1.0])
    places = [Products([one], 100, 1), Products([other], 10, 1)]
    found = {one.key: 2, other.key: 2}  # 1 / 200 against 0.2 / 20
    assert cheapest_step(places, CHOICES, "size", found, set()) == one.key
    assert cheapest_step(places, CHOICES, "size", found, {one.key}) == other.key
    found[one.key] = 1  # 7 / 100
    assert cheapest_step(places, CHOICES, "size", found, set()) == other.key
    assert cheapest_step(places, CHOICES, "size", {one.key: 0, other.key: 0}, set()) is None


# Refusals -------------------------------------------------------------------------------------------


def test_a_target_out_of_reach_is_refused_with_the_best_found(vit: Case) -> None:
    said = (
        r"^mixed_precision: target 100 is out of reach: with 3 bits at all sites \d+\.\d\d % of the "
        r"calibration images agree, the best found$"
    )
    with pytest.raises(UserError, match=said):
        vit.quantized(mixed(target=100.0, choices=[2, 3]), (2, 2))


def test_a_budget_below_all_choices_is_refused(vit: Case) -> None:
    said = r"^mixed_precision: budget 2.5 is below what the fewest bits of choices cost, 3$"
    with pytest.raises(UserError, match=said):
        vit.quantized(mixed(budget=2.5))


def test_a_recipe_with_nothing_to_choose_is_refused(vit: Case) -> None:
    rule = {"select": {"operand": "weight"}, "quantize": False}
    with pytest.raises(UserError, match=r"^mixed_precision: the recipe quantizes nothing whose bits can be"):
        vit.quantized(mixed(rule))


def test_settings_out_of_range_are_refused() -> None:
    from pydantic import ValidationError

    wrong: list[dict[str, Any]] = [
        {"choices": []}, {"choices": [1]}, {"budget": 0.0}, {"target": 101.0}, {"images": 0},
        {"budget": 4.0, "target": 99.0}, {"cost": "time"}, {"loss": "l1"},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(ValidationError):
            MixedPrecisionSettings(**settings)
