"""PTQ4ViT: two ranges where they belong, and scales that brute force with the loss's gradient finds too."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe, sqnr
from torch import Tensor, nn

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.methods.ptq4vit import PTQ4ViTSettings
from ptq2themoon.quantize.factors import Product
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.quantizers.twin_uniform import TwinUniform
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.quantize.watching import Seen, watch
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)
OFF = {"hessian": False, "softmax_twin": False, "gelu_twin": False}
ROWS: dict[str, dict[str, Any]] = {
    "none": OFF,
    "hessian": {**OFF, "hessian": True},
    "softmax": {"gelu_twin": False},
    "gelu": {},
    "twins alone": {"hessian": False},
}


def ptq(*rules: dict[str, Any], **settings: Any) -> Recipe:
    method = {"name": "ptq4vit", "n": 12, "rounds": 1, **settings}
    return recipe("ptq4vit", *rules, methods=[method])


class Layer(nn.Module):
    """Logits of one linear layer on rows of 16 numbers."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 6)
        self.layer.weight.data *= factor * (1 + 3 * torch.rand(6, 16) ** 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def linear(factor: float = 1.0) -> Case:
    case = Case.of(Layer(factor).eval(), (1, 4, 4))
    return replace(case, images=case.images**3)


def scales(model: QuantizedModel) -> dict[Slot, Tensor]:
    return {slot: tensor.ready().scale for slot, tensor in model.slots()}


def twins(model: QuantizedModel) -> dict[str, TwinUniform]:
    return {
        slot.operator: tensor.quantizer
        for slot, tensor in model.slots()
        if isinstance(tensor.quantizer, TwinUniform)
    }


# The search -----------------------------------------------------------------------------------------


LINEAR: list[dict[str, Any]] = [
    {"select": {"operand": ["bias", "output"]}, "quantize": False},
    {"select": {}, "observer": "minmax"},
    {"select": {"operand": "weight"}, "granularity": "per-channel", "weight_axis": "output"},
]


def own_gradients(logits: Tensor, seed: int) -> np.ndarray:
    """Squared gradient of -log p(label) by the logits; labels are drawn from p, in batches of 8."""
    generator, found = torch.Generator().manual_seed(seed), []
    for batch in logits.double().split(8):
        p = torch.softmax(batch, -1)
        labels = torch.multinomial(p, 1, generator=generator)
        found.append((p - torch.zeros_like(p).scatter(1, labels, 1.0)).square())
    return torch.cat(found).numpy()


def test_it_finds_what_brute_force_finds() -> None:
    case, settings = linear(0.3), PTQ4ViTSettings(n=40, rounds=3)
    constants = {t.name: numpy_helper.to_array(t) for t in case.reference.graph.initializer}
    (node,) = (n for n in case.reference.graph.node if n.op_type in ("Gemm", "PPQBiasFusedMatMul"))
    w, bias = (constants[name].astype(float) for name in node.input[1:])
    w = w if w.shape[0] == 16 else w.T
    x = case.images.flatten(1).double().numpy()
    y, weight = x @ w + bias, own_gradients(case.floating(), seed=0)
    steps = [1.0, *np.linspace(settings.alpha, settings.beta, settings.n + 1)]

    def quantized(value: np.ndarray, scale: Any) -> np.ndarray:
        return np.clip(np.rint(value / scale), -8, 7) * scale

    def best(outputs: list[np.ndarray], columns: slice) -> float:
        losses = [(weight[:, columns] * (out - y[:, columns]) ** 2).sum() for out in outputs]
        return steps[int(np.argmin(losses))]

    first_w, first_x = np.abs(w).max(0) / 7.5, np.abs(x).max() / 7.5
    scale_w, scale_x = first_w.copy(), first_x
    for _ in range(settings.rounds):
        now = quantized(x, scale_x)
        for j in range(6):
            column = slice(j, j + 1)
            tried = [now @ quantized(w[:, column], first_w[j] * s) + bias[column] for s in steps]
            scale_w[j] = first_w[j] * best(tried, column)
        w_now = quantized(w, scale_w)
        tried = [quantized(x, first_x * s) @ w_now + bias for s in steps]
        scale_x = first_x * best(tried, slice(None))
    method = {"name": "ptq4vit", **settings.model_dump(), "softmax_twin": False, "gelu_twin": False}
    found = scales(case.quantized(recipe("vanilla_once", *LINEAR, methods=[method]), BITS))
    (name,) = {slot.operator for slot in found}
    np.testing.assert_allclose(found[Slot(name, "weight", 1)], scale_w, rtol=1e-5)
    assert float(found[Slot(name, "input", 0)]) == pytest.approx(scale_x, rel=1e-5)


def test_the_gradient_is_real_and_the_same_each_time(vit: Case) -> None:
    names = [
        node.name for node in vit.reference.graph.node if node.name.endswith(("fc1", "attn_scores", "head"))
    ]
    floating = SimulatedModel(vit.reference, "cpu")
    seen: list[dict[str, list[Tensor]]] = []
    for _ in range(2):
        found: dict[str, list[Tensor]] = {name: [] for name in names}

        def visit(one: Seen, found: dict[str, list[Tensor]] = found) -> None:
            assert one.weight is not None
            found[one.operator].append(one.weight.clone())

        watch(floating, names, vit.images.split(8), visit, label_seed=5)
        seen.append(found)
    assert all(torch.equal(torch.cat(seen[0][n]), torch.cat(seen[1][n])) for n in names)
    assert all(torch.cat(seen[0][n]).sum() > 0 for n in names)
    at_head = torch.cat(seen[0]["head"]).double().numpy()
    np.testing.assert_allclose(at_head, own_gradients(vit.floating(), 5), rtol=1e-3, atol=1e-7)


def test_a_gradient_of_zeros_is_refused() -> None:
    """A model that is sure of every image: each label is the one whose probability is 1."""
    case = linear(1e5)
    method = {"name": "ptq4vit", "softmax_twin": False, "gelu_twin": False}
    with pytest.raises(
        UserError, match=r"^operator '.*': the gradient of its output is zero for all .*gradients$"
    ):
        case.quantized(recipe("vanilla_once", *LINEAR, methods=[method]), BITS)


@pytest.mark.parametrize("row", ROWS)
def test_no_turn_makes_the_score_worse(vit: Case, row: str, products: list[Product]) -> None:
    vit.quantized(ptq(rounds=2, **ROWS[row]), BITS)
    turns = [product.losses for product in products]
    assert len(turns) > 10
    assert all(after <= before for found in turns for before, after in found)
    if PTQ4ViTSettings(**ROWS[row]).hessian:
        ends = [(after, before) for t in turns for (_, after), (before, _) in pairwise(t)]
        np.testing.assert_allclose(*zip(*ends, strict=True), rtol=1e-4)


# Two ranges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_two_ranges_have_switches(vit: Case, row: str) -> None:
    settings = PTQ4ViTSettings(**ROWS[row])
    roles = [name.rpartition(".")[2] for name in twins(vit.quantized(ptq(**ROWS[row]), BITS))]
    wanted = 2 * ["attn_context"] if settings.softmax_twin else []
    assert sorted(roles) == wanted + (2 * ["fc2"] if settings.gelu_twin else [])


@pytest.mark.parametrize("family", ["vit", "swin", "deit_distilled"])
def test_fixed_steps_are_the_paper_s(family: str) -> None:
    found = twins(Case.of_family(family).quantized(ptq(), BITS))
    assert found
    for name, twin in found.items():
        if name.endswith("fc2"):
            assert (twin.by, float(twin.fine_scale)) == ("sign", pytest.approx(0.16997 / 8))
        else:
            assert (twin.by, float(twin.scale)) == ("size", pytest.approx(1 / 7))
            m = float(torch.log2(twin.scale / twin.fine_scale))
            assert m in range(20)


def test_each_head_has_a_scale_but_for_softmax_s_output(vit: Case) -> None:
    for slot, tensor in vit.quantized(ptq(), BITS).slots():
        if slot.operator.endswith(("attn_scores", "attn_context")):
            one = (slot.operator.endswith("attn_context"), slot.position) == (True, 0)
            assert tensor.ready().scale.shape == (() if one else (2,)), slot


def test_signed_codes_lose_what_two_ranges_keep(vit: Case) -> None:
    """Half of a signed range is of no use to values from 0 up."""
    assert vit.sqnr(ptq(**ROWS["gelu"]), BITS) > vit.sqnr(ptq(**ROWS["hessian"]), BITS) + 0.5


# Switched off ---------------------------------------------------------------------------------------


def test_all_switched_off_is_the_plain_recipe_to_the_bit(vit: Case) -> None:
    plain = vit.logits(vit.quantized(recipe("ptq4vit", methods=[]), BITS))
    assert torch.equal(vit.logits(vit.quantized(ptq(rounds=0, **OFF), BITS)), plain)


def test_without_its_parts_it_is_scale_search(vit: Case) -> None:
    grid = {"n": 12, "rounds": 2, "alpha": 0.01}
    search = recipe("ptq4vit", methods=[{"name": "scale_search", "score": "cosine", **grid}])
    found = vit.logits(vit.quantized(ptq(**{**OFF, **grid}), BITS))
    assert torch.equal(found, vit.logits(vit.quantized(search, BITS)))


# Refusals, and deployment ---------------------------------------------------------------------------


def test_a_model_without_gelu_is_refused_and_says_what_to_switch_off() -> None:
    case = Case.of_family("mobilevit")
    with pytest.raises(
        UserError, match=r"^ptq4vit: .* GELU's output before every fc2; say gelu_twin: false$"
    ):
        case.quantized(ptq())
    found = case.quantized(ptq(gelu_twin=False), BITS)
    assert sqnr(case.logits(found), case.floating()) > 3


def test_softmax_in_floating_point_is_refused(vit: Case) -> None:
    rule = {"select": {"role": "attn_context", "operand": "input"}, "quantize": False}
    with pytest.raises(UserError, match=r"^ptq4vit: .* softmax's output; say softmax_twin: false$"):
        vit.quantized(ptq(rule))


def test_products_of_two_ranges_stay_in_floating_point_and_say_why(vit: Case) -> None:
    model = vit.quantized(ptq())
    places = deploy(model.edited, model.quantized, "fast").placements
    for name in twins(model):
        assert places[name].runs == "float"
        assert "two ranges of different steps" in places[name].why
    assert {places[n].runs for n in places if n.endswith(("qkv", "proj", "fc1"))} == {"integer"}
    assert all(isinstance(t.quantizer, Uniform | TwinUniform) for _, t in model.slots())
