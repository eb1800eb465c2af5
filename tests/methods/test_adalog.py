"""AdaLog: bases of logarithms, the shift of GELU's output, and a search that never makes anything worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import FLOATING_WEIGHTS, Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.methods.adalog import AdaLog, AdaLogSettings, Scored
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.quantizers.adalog import AdaLog as Kind
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

QUICK = {"candidates": 16, "steps": 2}
OFF = {"softmax": False, "gelu": False, "uniform": False}


def adalog(*rules: dict[str, Any], base: str = "papers", before: Any = (), **settings: Any) -> Recipe:
    return recipe(base, *rules, methods=[*before, {"name": "adalog", **QUICK, **settings}])


@pytest.fixture(scope="module", params=["vit", "swin"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of_family(request.param)


# Invariance ---------------------------------------------------------------------------------------


def test_the_rewritten_graph_is_the_reference_in_floating_point(case: Case) -> None:
    model = case.quantized(adalog(), (4, 4))
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    shifts = [o.name for o in model.operators if o.name.endswith("/shift")]
    fc2 = [o.name for o in case.operators if o.role == "fc2"]
    assert shifts == [f"{name}/shift" for name in fc2]


def test_with_all_off_it_is_the_plain_recipe(vit: Case) -> None:
    found = vit.logits(vit.quantized(adalog(**OFF), (4, 4)))
    assert torch.equal(found, vit.logits(vit.quantized(recipe("papers"), (4, 4))))


@pytest.mark.parametrize("alone", ["softmax", "gelu", "uniform"])
def test_each_part_has_a_switch(vit: Case, alone: str) -> None:
    model = vit.quantized(adalog(**OFF | {alone: True}), (4, 4))
    kinds = {
        (slot.operator.rpartition(".")[2], slot.position)
        for slot, t in model.slots()
        if t.ready().kind == "adalog"
    }
    assert kinds == {"softmax": {("attn_context", 0)}, "gelu": {("fc2", 0)}, "uniform": set()}[alone]
    assert bool(model.rewrite) == (alone == "gelu")


# The equations ------------------------------------------------------------------------------------


def by_numpy(value: np.ndarray, scale: float, q: int, bits: int) -> np.ndarray:
    """The paper's two tables."""
    with np.errstate(divide="ignore"):
        exact = -np.log2(np.maximum(value.astype(np.float64), 0) / scale) * 37 / q
    codes = np.maximum(np.rint(exact), 0)
    kept = codes < 2**bits
    whole = np.where(kept, codes, 0).astype(int)
    grid = max(2 ** (bits + 1) - 2, 14)
    table = np.rint(2.0 ** -((whole * q % 37) / 37) * grid) / grid
    return np.where(kept, scale * 2.0 ** -(whole * q // 37) * table, 0)


def test_fc2_is_the_paper_s_equation(vit: Case) -> None:
    """y = (Q(x + 0.16997) - 0.16997) W^ + b, with x what fc2's GELU gives in the quantized model."""
    model = vit.quantized(adalog(), (4, 4))
    quantizers = {slot: t.ready() for slot, t in model.slots()}
    seen: dict[str, torch.Tensor] = {}

    def see(name: str, _: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        seen[name] = outputs[0].double()

    simulated(model, "cpu")(vit.images, dict.fromkeys(["blocks.0.gelu", "blocks.0.fc2"], see))
    reference = SimulatedModel(vit.reference, "cpu")
    weight, bias = (reference.parameter("blocks.0.fc2", position) for position in (1, 2))
    kind = quantizers["blocks.0.fc2", "input", 0]  # type: ignore[index]
    assert isinstance(kind, Kind)
    rounded = by_numpy(seen["blocks.0.gelu"].numpy() + 0.16997124254703522, kind.scale.item(), kind.q, 4)
    on_grid = quantizers["blocks.0.fc2", "weight", 1](weight).double().numpy()  # type: ignore[index]
    wanted = (rounded - 0.16997124254703522) @ on_grid + bias.double().numpy()
    off = np.abs(seen["blocks.0.fc2"].numpy() - wanted)
    assert np.mean(off > 1e-4 * np.abs(wanted).max()) < 1e-2  # a value on a tie may fall the other way


def test_softmax_s_base_is_the_best_of_all(vit: Case) -> None:
    """By the product with the values, every q from 10 to 138 tried in numpy."""
    model = vit.quantized(adalog(FLOATING_WEIGHTS, gelu=False, uniform=False), (8, 3))
    kind = dict(model.slots())["blocks.0.attn_context", "input", 0].quantizer  # type: ignore[index]
    assert isinstance(kind, Kind)
    assert kind.scale == 1
    seen: list[torch.Tensor] = []
    SimulatedModel(vit.reference, "cpu")(
        vit.images, {"blocks.0.attn_context": lambda _, inputs, __: seen.extend(i.double() for i in inputs)}
    )
    a, v = (each.numpy() for each in seen)
    errors = {q: np.square((by_numpy(a, 1.0, q, 3) - a) @ v).sum() for q in range(10, 139)}
    assert errors[kind.q] <= 1.1 * min(errors.values())  # 32 of the matrices were searched
    assert errors[kind.q] < errors[37]


# The search ---------------------------------------------------------------------------------------


def test_the_progressive_search_comes_close_and_never_gets_worse() -> None:
    method = AdaLog(AdaLogSettings())

    def score(scale: float, other: int) -> Scored:
        return Scored((scale - 0.7312) ** 2 + (other - 5) ** 2, scale, other)

    first = [(0.1 + 0.9 * i / 7, other) for i in range(8) for other in (3, 5, 7)]
    best = method._progressive(first, [score(0.9, 5)], score, 0.9)
    assert best.other == 5
    assert abs(best.scale - 0.7312) < 1e-3
    perfect = score(0.7312, 5)
    assert method._progressive(first, [perfect], score, 0.9) == perfect


@pytest.mark.parametrize("base", ["papers", "ship"])
def test_uniform_quantizers_lose_no_more_than_calibrated_ones(vit: Case, base: str) -> None:
    """Both sides of the scores of block 0, whose inputs nothing but qkv is before."""
    settings = {"softmax": False, "gelu": False}
    models = [vit.quantized(r, (8, 4)) for r in (recipe(base, methods=[]), adalog(base=base, **settings))]
    seen: list[torch.Tensor] = []
    SimulatedModel(vit.reference, "cpu")(
        vit.images, {"blocks.0.attn_scores": lambda _, inputs, __: seen.extend(i.clone() for i in inputs)}
    )
    errors = []
    for model in models:
        sides = [dict(model.slots())["blocks.0.attn_scores", "input", i].ready() for i in (0, 1)]  # type: ignore[index]
        assert all(isinstance(side, Uniform) and side.axis is None for side in sides)
        found = sides[0](seen[0]) @ sides[1](seen[1])
        errors.append(float((found - seen[0] @ seen[1]).square().sum()))
    assert errors[1] < errors[0]


def test_the_whole_gains_at_four_bits(vit: Case) -> None:
    assert vit.sqnr(adalog(), (4, 4)) > vit.sqnr(recipe("papers"), (4, 4)) + 1


# With others --------------------------------------------------------------------------------------

REPQ = {"name": "repq_vit", "log_sqrt2": False}


def test_repq_vit_s_layernorms_stay_as_they_are(vit: Case) -> None:
    alone = vit.quantized(recipe("repq_vit", methods=[REPQ]), (4, 4))
    both = vit.quantized(adalog(base="repq_vit", before=[REPQ]), (4, 4))
    assert alone.fixed
    assert all(both.fixed[slot] == quantizer for slot, quantizer in alone.fixed.items())
    assert sqnr(vit.logits(both), vit.floating()) > sqnr(vit.logits(alone), vit.floating())


@pytest.mark.parametrize("first", ["repq_vit", "adalog"])
def test_two_kinds_for_softmax_are_refused(vit: Case, first: str) -> None:
    methods = [{"name": "repq_vit", "log_sqrt2": True}, {"name": "adalog", **QUICK}]
    methods = methods if first == "repq_vit" else methods[::-1]
    with pytest.raises(
        UserError, match=r"both decide the quantizer of softmax's output; say .*log_sqrt2: false for repq_vit"
    ) as error:
        vit.quantized(recipe("repq_vit", methods=methods))
    assert "\n" not in str(error.value)


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rule = {"select": {"operand": "input"}, "quantize": False}
    with pytest.raises(UserError, match=r"^adalog: the recipe quantizes no input of a product per tensor"):
        vit.quantized(adalog(rule))


def test_deployed_it_leaves_fc2_and_attention_s_values_in_floating_point(vit: Case) -> None:
    model = vit.quantized(adalog(), (8, 8))
    placements = deploy(model.edited, model.quantized, "fast").placements
    floating = {name.rpartition(".")[2] for name, place in placements.items() if place.runs == "float"}
    assert floating == {"fc2", "attn_context"}
