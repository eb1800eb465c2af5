"""Power-of-two scales: each is one of the two neighbours, chosen as the setting says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

ROUNDINGS = ("mse", "nearest", "down", "up")


def rounded(*rules: dict[str, Any], base: str = "papers", **settings: Any) -> Recipe:
    return recipe(base, *rules, methods=[{"name": "power_of_two", **settings}])


def uniform(model: QuantizedModel) -> dict[Slot, Uniform]:
    return {slot: q for slot, t in model.slots() if isinstance(q := t.ready(), Uniform)}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("base", ["papers", "vanilla"])
def test_scales_are_the_neighbours_that_the_setting_names(vit: Case, base: str, rounding: str) -> None:
    before = uniform(vit.quantized(recipe(base, methods=[])))
    after = uniform(vit.quantized(rounded(base=base, rounding=rounding)))
    assert before.keys() == after.keys()
    for slot, quantizer in after.items():
        exact, found = (np.log2(q.scale.double().numpy()) for q in (before[slot], quantizer))
        wanted = {"down": np.floor(exact), "up": np.ceil(exact), "nearest": np.rint(exact), "mse": found}
        np.testing.assert_array_equal(found, wanted[rounding])
        assert (np.abs(found - exact) < 1).all()
        assert (found == np.rint(found)).all()


def test_zero_points_keep_the_lower_end_of_the_range(vit: Case) -> None:
    before, after = (uniform(vit.quantized(r)) for r in (recipe("papers"), rounded(rounding="up")))
    for slot, quantizer in after.items():
        point, old = float(quantizer.zero_point.flatten()[0]), before[slot]
        assert quantizer.symmetric == old.symmetric
        ends = [float((q.lowest * q.scale).flatten()[0]) for q in (old, quantizer)]
        assert point == round(point)
        if not old.symmetric:
            assert abs(ends[0] - ends[1]) <= float(quantizer.scale) / 2 + 1e-6


def test_mse_takes_the_neighbour_of_least_error(vit: Case) -> None:
    """In numpy, of one weight and one activation."""
    model = vit.quantized(rounded(rounding="mse"), (4, 4))
    others = [uniform(vit.quantized(rounded(rounding=r), (4, 4))) for r in ("down", "up")]
    (node,) = (node for node in vit.reference.graph.node if node.name == "blocks.0.fc2")
    values: dict[tuple[str, int], Any] = {}

    def see(_: str, inputs: list[torch.Tensor], __: list[torch.Tensor]) -> None:
        values["input", 0] = inputs[0].numpy()

    simulation = SimulatedModel(vit.reference, "cpu")
    values["weight", 1] = simulation.parameter(node.name, 1).numpy()
    simulation(
        vit.images, {node.name: lambda _, inputs, __: values.update({("input", 0): inputs[0].numpy()})}
    )
    for (operand, position), value in values.items():
        slot = Slot(node.name, operand, position)  # type: ignore[arg-type]
        found = uniform(model)[slot]
        errors = []
        for other in (one[slot] for one in others):
            scale, point = (a.double().numpy() for a in (other.scale, other.zero_point))
            codes = np.clip(np.rint(value / scale) + point, other.quant_min, other.quant_max)
            squares = np.square((codes - point) * scale - value)
            errors.append(squares.sum(0) if scale.ndim else squares.sum())
        down, up = (one[slot].scale.numpy() for one in others)
        np.testing.assert_array_equal(found.scale.numpy(), np.where(errors[1] < errors[0], up, down))


def test_at_four_bits_the_search_beats_each_way_alone(vit: Case) -> None:
    """Of the sum of squares of what is rounded, which is what it searches; here, of logits too."""
    found = {r: vit.sqnr(rounded(rounding=r), (4, 4)) for r in ROUNDINGS}
    assert found["mse"] >= max(found["down"], found["up"]) - 1
    plain = vit.sqnr(recipe("papers"), (8, 8))
    assert vit.sqnr(rounded(), (8, 8)) > plain - 6  # a bit at most


def test_it_changes_scales_alone(vit: Case) -> None:
    once = vit.quantized(rounded())
    assert not once.rewrite
    assert not once.changes


def test_it_runs_on_the_same_integer_kernels(vit: Case) -> None:
    placements = [
        deploy(m.edited, m.quantized, "fast").placements
        for m in (vit.quantized(rounded()), vit.quantized(recipe("papers")))
    ]
    assert {n: p.runs for n, p in placements[0].items()} == {n: p.runs for n, p in placements[1].items()}


def test_a_recipe_without_uniform_quantizers_is_refused(vit: Case) -> None:
    nothing = {"select": {}, "quantize": False}
    weights = {"select": {"role": "fc1", "operand": "weight"}, "quantize": True, "kind": "apot"}
    with pytest.raises(UserError, match=r"^power_of_two: the recipe quantizes nothing with kind uniform"):
        vit.quantized(rounded(nothing, weights))


# Levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["power_of_two_weights", "apot"])
def test_recipes_of_levels(vit: Case, name: str) -> None:
    model = vit.quantized(recipe(name), (4, 8))
    kinds = {t.ready().kind for _, t in model.slots() if t.operand == "weight"}
    assert kinds == {name.removesuffix("_weights")}
    assert all(t.ready().scale.ndim == 1 for _, t in model.slots() if t.operand == "weight")
    assert sqnr(vit.logits(model), vit.floating()) > 4
    placements = deploy(model.edited, model.quantized, "fast").placements
    assert placements["blocks.0.fc1"].runs == "float"
    assert "no integers of one scale" in placements["blocks.0.fc1"].why
    assert placements["blocks.0.attn_scores"].runs == "integer"


def test_levels_are_for_weights_alone() -> None:
    from ptq2themoon.vocabulary.operators import Operator

    chosen = recipe("papers", {"select": {"role": "fc1"}, "kind": "apot"})
    with pytest.raises(UserError, match=r"kind apot is for weights, but selects fc1 \(input\)"):
        chosen.spec(Operator("", "", "fc1", None), "input", 8, 8)
