"""Scale search: the multiples that brute force in numpy finds, and never worse than where it began."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe, sqnr
from torch import Tensor, nn

from ptq2themoon.methods.scale_search import ScaleSearchSettings
from ptq2themoon.quantize.factors import Product
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)
SCORES = ["mse", "l2", "cosine", "pearson", "tensor"]
PER_TENSOR: dict[str, Any] = {"select": {"operand": "weight"}, "granularity": "per-tensor"}
SYMMETRIC: dict[str, Any] = {"select": {"operand": "input"}, "symmetry": "symmetric", "codes": "signed"}
HEADS: dict[str, Any] = {
    "select": {"role": ["attn_scores", "attn_context"], "operand": "input"},
    "granularity": "per-head",
}
ONE = "layer"


def search(*rules: dict[str, Any], base: str = "papers", **settings: Any) -> Recipe:
    return recipe(base, *rules, methods=[{"name": "scale_search", "n": 12, **settings}])


class Layer(nn.Module):
    """One linear layer on rows of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 6)
        self.layer.weight.data *= 1 + 3 * torch.rand(6, 16) ** 8

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


@pytest.fixture(scope="module")
def layer() -> Case:
    """Its inputs have long tails."""
    case = Case.of(Layer().eval(), (1, 4, 4))
    return replace(case, images=case.images**3)


@pytest.fixture(scope="module", params=["vit", "swin", "mobilevit"])
def family(request: pytest.FixtureRequest) -> Case:
    return Case.of_family(request.param)


ALL: dict[str, Any] = {"select": {"operand": ["bias", "output"]}, "quantize": False}
LINEAR = [ALL, {"select": {}, "observer": "minmax"}]


def brute_force(case: Case, settings: ScaleSearchSettings, per_channel: bool) -> tuple[np.ndarray, float]:
    """Scales of weight and input that the alternation ends with, in float64."""
    constants = {t.name: numpy_helper.to_array(t) for t in case.reference.graph.initializer}
    (node,) = (n for n in case.reference.graph.node if n.op_type in ("Gemm", "PPQBiasFusedMatMul"))
    seen: list[Tensor] = []
    SimulatedModel(case.reference, "cpu")(case.images, {node.name: lambda _, i, __: seen.append(i[0])})
    x, (w, bias) = seen[0].double().numpy(), (constants[name].astype(float) for name in node.input[1:])
    if w.shape[0] != x.shape[1]:
        w = w.T
    y = x @ w + bias

    def quantized(value: np.ndarray, scale: Any) -> np.ndarray:
        return np.clip(np.rint(value / scale), -8, 7) * scale

    def loss(found: np.ndarray, wanted: np.ndarray) -> float:
        if settings.score == "mse":
            return float(((found - wanted) ** 2).sum())
        if settings.score == "l2":
            return float(np.linalg.norm((found - wanted).reshape(len(found), -1), axis=1).sum())
        if settings.score == "pearson":
            found, wanted = found - found.mean(), wanted - wanted.mean()
        cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
        return float(1 - cosine + 1e-4 * ((found - wanted) ** 2).sum() / (wanted**2).sum())

    steps = [1.0, *np.linspace(settings.alpha, settings.beta, settings.n + 1)]
    first_w = np.abs(w).max(0 if per_channel else None) / 7.5 * np.ones(6)
    first_x = np.abs(x).max() / 7.5
    scale_w, scale_x = first_w, first_x
    for _ in range(settings.rounds):
        x_now = quantized(x, scale_x)
        if per_channel:
            for j in range(6):
                trials = [loss(x_now @ quantized(w[:, j], first_w[j] * s) + bias[j], y[:, j]) for s in steps]
                scale_w = scale_w.copy()
                scale_w[j] = first_w[j] * steps[int(np.argmin(trials))]
        else:
            trials = [loss(x_now @ quantized(w, first_w * s) + bias, y) for s in steps]
            scale_w = first_w * steps[int(np.argmin(trials))]
        w_now = quantized(w, scale_w)
        trials = [loss(quantized(x, first_x * s) @ w_now + bias, y) for s in steps]
        scale_x = first_x * steps[int(np.argmin(trials))]
    return scale_w, scale_x


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("score", ["mse", "l2", "cosine", "pearson"])
def test_it_finds_what_brute_force_finds(layer: Case, score: str, per_channel: bool) -> None:
    settings = ScaleSearchSettings(score=score, n=30, alpha=0.3, rounds=3)  # type: ignore[arg-type]
    weights: dict[str, Any] = {
        "select": {"operand": "weight"}, "weight_axis": "output",
        "granularity": "per-channel" if per_channel else "per-tensor",
    }  # fmt: skip
    found = scales(
        layer.quantized(search(*LINEAR, weights, base="vanilla_once", **settings.model_dump()), BITS)
    )
    weight, read = brute_force(layer, settings, per_channel)
    (name,) = {slot.operator for slot in found if slot.operand == "weight"}
    np.testing.assert_allclose(
        found[Slot(name, "weight", 1)], weight if per_channel else weight[0], rtol=1e-5
    )
    assert float(found[Slot(name, "input", 0)]) == pytest.approx(read, rel=1e-5)


def test_by_tensor_each_takes_its_own_least_squares(layer: Case) -> None:
    found = layer.quantized(search(*LINEAR, base="vanilla_once", score="tensor", n=30), BITS)
    plain = dict(layer.quantized(recipe("vanilla_once", *LINEAR), BITS).slots())
    (node,) = (n for n in layer.reference.graph.node if n.op_type in ("Gemm", "PPQBiasFusedMatMul"))
    weight = torch.from_numpy(constants(layer.reference)[node.input[1]].copy())
    steps = [1.0, *np.linspace(0.5, 1.2, 31)]
    for slot, tensor in found.slots():
        if slot.operand == "weight" and slot.operator == node.name:
            first = plain[slot].ready()
            assert isinstance(first, Uniform)
            trials = [first.with_scale((first.scale.double() * step).float()) for step in steps]
            errors = [float((trial(weight) - weight).double().square().sum()) for trial in trials]
            assert tensor.ready() == trials[int(np.argmin(errors))]
            return
    raise AssertionError


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def scales(model: QuantizedModel) -> dict[Slot, Tensor]:
    return {slot: tensor.ready().scale for slot, tensor in model.slots()}


# What it promises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_no_round_is_the_plain_recipe_to_the_bit(vit: Case, score: str) -> None:
    found = vit.quantized(search(score=score, rounds=0), BITS)
    assert torch.equal(vit.logits(found), vit.logits(vit.quantized(recipe("papers"), BITS)))


@pytest.mark.parametrize("score", SCORES)
def test_no_turn_makes_the_score_worse(family: Case, score: str, products: list[Product]) -> None:
    family.quantized(search(HEADS, score=score, rounds=2, alpha=0.2), BITS)
    turns = [product.losses for product in products]
    assert len(turns) > 10
    assert all(after <= before for found in turns for before, after in found)
    assert any(found[0][1] < 0.9 * found[0][0] for found in turns)
    if score == "mse":  # the sum over groups is the same for all ways to group the values
        ends = [(after, before) for t in turns for (_, after), (before, _) in pairwise(t)]
        np.testing.assert_allclose(*zip(*ends, strict=True), rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_it_gains_where_a_few_values_stretch_the_range(layer: Case, score: str) -> None:
    plain = layer.logits(layer.quantized(recipe("vanilla_once", *LINEAR), BITS))
    found = layer.logits(layer.quantized(search(*LINEAR, base="vanilla_once", score=score, n=50), BITS))
    assert sqnr(found, layer.floating()) > sqnr(plain, layer.floating()) + 0.5


def test_every_scale_is_a_multiple_of_its_first_and_each_head_and_channel_has_its_own(vit: Case) -> None:
    found = vit.quantized(search(HEADS, score="mse"), BITS)
    plain = vit.quantized(recipe("papers", HEADS), BITS)
    steps = torch.cat([torch.ones(1), torch.linspace(0.5, 1.2, 13)])
    multiples = {slot: scales(found)[slot] / first for slot, first in scales(plain).items()}
    for slot, several in multiples.items():
        assert ((several[..., None] - steps).abs().amin(-1) < 1e-5).all(), slot
    zero_points = [[t.ready().arrays()["zero_point"] for _, t in m.slots()] for m in (found, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*zero_points, strict=True))
    assert len({*multiples[Slot("blocks.0.attn_scores", "input", 0)].tolist()}) == 2
    assert len({*multiples[Slot("blocks.0.fc1", "weight", 1)].tolist()}) > 3


def test_images_in_other_batches_give_the_same_scales(vit: Case) -> None:
    from ptq2themoon.pipeline import quantize

    found = [
        scales(quantize(vit.reference, vit.operators, search(score="mse"), BITS, vit.images.split(n), "cpu"))
        for n in (24, 5)
    ]
    assert all(torch.equal(found[0][slot], found[1][slot]) for slot in found[0])


def test_the_last_candidate_is_tried(layer: Case) -> None:
    """Where a wider range is better, the widest wins; code of this family never reaches it."""
    narrow: dict[str, Any] = {
        "select": {"operand": ["input", "weight"]},
        "observer": "percentile",
        "percentile": 60,
    }
    settings = {"alpha": 1.0, "beta": 1.5, "n": 4, "score": "mse"}
    found = scales(layer.quantized(search(*LINEAR, narrow, base="vanilla_once", **settings), BITS))
    first = scales(layer.quantized(recipe("vanilla_once", *LINEAR, narrow), BITS))
    (slot,) = (slot for slot in found if slot.operand == "input" and found[slot] != first[slot])
    assert float(found[slot] / first[slot]) == pytest.approx(1.5)


# Refusals -----------------------------------------------------------------------------------------


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rules = [
        {"select": {}, "quantize": False},
        {"select": {"role": "softmax", "operand": "input"}, "quantize": True},
    ]
    with pytest.raises(UserError, match=r"^scale_search: the recipe quantizes nothing with a scale .* out$"):
        vit.quantized(search(*rules))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"alpha": 0.0}, "alpha"), ({"n": 0}, "n"), ({"alpha": 1.3}, "beta 1.2 must be above alpha 1.3"),
     ({"score": "mae"}, "score")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=said):
        ScaleSearchSettings(**settings)
