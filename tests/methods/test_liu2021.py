"""Liu et al. 2021: similarity and order of attention by their formulas, and bits within a budget."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe
from torch import Tensor

from ptq2themoon.methods.liu2021 import Liu2021Settings, Module, sensitivities, spread
from ptq2themoon.quantize.factors import Product
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.scores import Pearson, Ranked
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)
BIAS = {"name": "bias_correction"}
SCORES = Slot("blocks.0.attn_scores", "input", 0)


def liu(*rules: dict[str, Any], **settings: Any) -> Recipe:
    method = {"name": "liu2021", "n": 12, "rounds": 1, **settings}
    return recipe("liu2021", *rules, methods=[method, BIAS])


# Similarity, and the order of attention -------------------------------------------------------------


def test_queries_take_the_scale_of_the_paper_s_objective(vit: Case) -> None:
    """1 - correlation + gamma L_rank in numpy, over the candidates of one scale, keys not quantized."""
    keys = {"select": {"role": "attn_scores", "operand": "input", "position": 1}, "quantize": False}
    settings = {"gamma": 5.0, "theta": 0.02, "pairs": 15, "n": 20, "alpha": 0.2}
    model = vit.quantized(liu(keys, **settings), BITS)
    plain = vit.quantized(recipe("papers", keys), BITS)
    first = dict(plain.slots())[SCORES].ready()
    assert isinstance(first, Uniform)
    seen: list[list[Tensor]] = []
    floating = SimulatedModel(vit.reference, "cpu")
    floating(vit.images, {SCORES.operator: lambda _, inputs, __: seen.append([i.clone() for i in inputs])})
    queries, others = seen[0]
    wanted = (queries @ others).double().numpy()
    scale = _factor_after(vit)

    def objective(step: float) -> float:
        quantizer = first.with_scale((first.scale.double() * step).float())
        found = (quantizer(queries) @ others).double().numpy()
        ours, theirs = (_softmax(scores * scale) for scores in (found, wanted))
        rank = 0.0
        for distance in range(1, wanted.shape[-1]):
            sign = np.sign(theirs - np.roll(theirs, distance, -1))
            rank += np.maximum(0, 0.02 - (ours - np.roll(ours, distance, -1)) * sign).mean()
        correlation = np.corrcoef(found.ravel(), wanted.ravel())[0, 1]
        tie = 1e-4 * ((found - wanted) ** 2).sum() / (wanted - wanted.mean()).__pow__(2).sum()
        return float(1 - correlation + 5 * rank / (wanted.shape[-1] - 1) + tie)

    steps = [1.0, *np.linspace(0.2, 1.2, 21)]
    best = steps[int(np.argmin([objective(step) for step in steps]))]
    found = dict(model.slots())[SCORES].ready()
    assert float(found.scale / first.scale) == pytest.approx(best, rel=1e-5)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _factor_after(case: Case) -> float:
    """What scores are multiplied by before the softmax, where it is not done before the product."""
    names = {o.name: o.type for o in case.operators if (o.role, o.block) == ("attn_scale", 0)}
    (product_,) = (n for n in case.reference.graph.node if n.name == SCORES.operator)
    for node in case.reference.graph.node:
        if node.name in names and product_.output[0] in node.input:
            constants = {t.name: numpy_helper.to_array(t) for t in case.reference.graph.initializer}
            value = float(next(constants[name] for name in node.input if name in constants))
            return 1 / value if names[node.name] == "Div" else value
    return 1.0


@pytest.mark.parametrize("family", ["vit", "swin", "mobilevit", "deit_distilled"])
def test_each_attention_keeps_its_order_and_the_rest_is_similarity(
    family: str, products: list[Product]
) -> None:
    case = Case.of_family(family)
    case.quantized(liu(), BITS)
    found = {product.name: product for product in products}
    ranked = {name for name, each in found.items() if isinstance(each.score, Ranked)}
    assert ranked == {o.name for o in case.operators if o.role == "attn_scores"}
    assert all(type(each.score) is Pearson for name, each in found.items() if name not in ranked)
    assert all(after <= before for each in found.values() for before, after in each.losses)


def test_attention_follows_the_scores(vit: Case) -> None:
    """What the loss of order looks at is the model's own attention."""
    tools = Tools(recipe("papers"), BITS, vit.images.split(8), 0, "cpu")
    scores = tools.ranked_scores(QuantizedModel(vit.reference, list(vit.operators)), 1.0, 0.0, 3)
    seen: dict[str, Tensor] = {}
    wanted = ["blocks.1.attn_scores", "blocks.1.softmax"]
    hooks = dict.fromkeys(wanted, lambda name, _, outputs: seen.update({name: outputs[0].clone()}))
    SimulatedModel(vit.reference, "cpu")(vit.images, hooks)
    with tools.without_gradients():
        found = scores[wanted[0]]._attention(seen[wanted[0]])
    torch.testing.assert_close(found, seen[wanted[1]])


def test_gamma_0_is_similarity_alone_and_gamma_counts(vit: Case) -> None:
    similar = recipe("papers", methods=[
        {"name": "scale_search", "score": "pearson", "n": 12}, BIAS])  # fmt: skip
    plain = vit.logits(vit.quantized(similar, BITS))
    assert torch.equal(vit.logits(vit.quantized(liu(gamma=0.0), BITS)), plain)
    assert not torch.equal(vit.logits(vit.quantized(liu(gamma=1e3), BITS)), plain)


def test_no_round_is_its_base_to_the_bit(vit: Case) -> None:
    plain = vit.logits(vit.quantized(recipe("papers", methods=[BIAS]), BITS))
    assert torch.equal(vit.logits(vit.quantized(liu(rounds=0), BITS)), plain)


# Mixed precision ------------------------------------------------------------------------------------


def tools_of(case: Case) -> tuple[QuantizedModel, Tools]:
    model = QuantizedModel(case.reference, list(case.operators))
    return model, Tools(recipe("papers"), BITS, case.images.split(8), 0, "cpu")


def test_sensitivities_are_the_paper_s_in_numpy(vit: Case) -> None:
    choices = [3, 5]
    modules = sensitivities(*tools_of(vit), choices, relative=False)
    assert [(m.part, m.block) for m in modules] == [
        (part, block) for block in (0, 1) for part in ("attention", "mlp")
    ]
    constants = {t.name: numpy_helper.to_array(t) for t in vit.reference.graph.initializer}
    nodes = {node.name: node for node in vit.reference.graph.node}
    seen: dict[str, Tensor] = {}
    features = {"attention": "blocks.1.softmax", "mlp": "blocks.1.fc2"}
    hooks = dict.fromkeys(features.values(), lambda name, _, outputs: seen.update({name: outputs[0].clone()}))
    SimulatedModel(vit.reference, "cpu")(vit.images, hooks)
    for module in modules[2:]:
        feature = seen[features[module.part]].double().numpy()
        matrices = feature.reshape(-1, *feature.shape[-2:])
        norm = np.mean([np.linalg.svd(matrix, compute_uv=False).sum() for matrix in matrices])
        assert module.norm == pytest.approx(norm, rel=1e-4)
        layers = ["qkv", "proj"] if module.part == "attention" else ["fc1", "fc2"]
        weights = [constants[nodes[f"blocks.1.{layer}"].input[1]].astype(float) for layer in layers]
        assert module.size == sum(w.size for w in weights)
        for bits, error in zip(choices, module.errors, strict=True):
            half, total = 2 ** (bits - 1), 0.0
            for w in weights:  # [in, out], a scale for each output channel
                scale = np.abs(w).max(0) / (half - 0.5)
                total += ((np.clip(np.rint(w / scale), -half, half - 1) * scale - w) ** 2).sum()
            assert error == pytest.approx(total, rel=1e-4)
        assert module.sensitivity == [module.norm * error for error in module.errors]


def test_relative_norms_have_a_mean_of_1_in_each_part(vit: Case) -> None:
    modules = sensitivities(*tools_of(vit), [4], relative=True)
    for part in ("attention", "mlp"):
        assert np.mean([m.norm for m in modules if m.part == part]) == pytest.approx(1)


def modules_of(sizes: list[int], errors: list[list[float]]) -> list[Module]:
    slot = Slot("one", "output", 0)
    return [
        Module("mlp", i, [], slot, {}, size=size, norm=1.0, errors=each)
        for i, (size, each) in enumerate(zip(sizes, errors, strict=True))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_bits_are_within_the_budget_and_the_best(seed: int) -> None:
    """Squared errors fall fourfold with a bit; every way to give out bits is tried."""
    generator = np.random.default_rng(seed)
    choices, sizes = [2, 3, 4, 5, 6], generator.choice([10, 20], 5).tolist()
    errors = [[float(f * 4.0**-bits) for bits in choices] for f in 10 ** generator.uniform(0, 3, 5)]
    modules = modules_of(sizes, errors)
    for budget in (2.0, 3.0, 4.3):
        found = spread(modules, choices, budget)

        def size(bits: Any) -> float:
            return sum(b * s for b, s in zip(bits, sizes, strict=True)) / sum(sizes)

        def loss(bits: Any) -> float:
            return sum(m.sensitivity[choices.index(b)] for m, b in zip(modules, bits, strict=True))

        assert size(found) <= budget
        best = min(loss(bits) for bits in product(choices, repeat=5) if size(bits) <= budget)
        assert loss(found) == pytest.approx(best)
    assert spread(modules, choices, 6.0) == [6] * 5
    assert spread(modules, choices, 2.0) == [2] * 5


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_budget_decides_bits_of_weights_alone(family: str) -> None:
    case = Case.of_family(family)
    model = case.quantized(liu(budget=4.2, choices=[3, 4, 5, 6]), BITS)
    total = count = 0
    sizes = {t.name: numpy_helper.to_array(t).size for t in case.reference.graph.initializer}
    nodes = {node.name: node for node in model.edited.graph.node}
    for item in model.quantized:
        for tensor in item.tensors:
            inside = item.operator.block is not None and tensor.operand == "weight"
            if inside:
                size = sizes[nodes[item.operator.name].input[1]]
                total, count = total + size * tensor.ready().bits, count + size
            elif item.operator.role != "patch_embed":
                assert tensor.ready().bits == 4
    assert 3.9 < total / count <= 4.2
    assert len({t.ready().bits for s, t in model.slots() if s.operand == "weight"}) > 1


def test_more_bits_give_less_error(vit: Case) -> None:
    logits = vit.floating()
    errors = [
        float((vit.logits(vit.quantized(liu(budget=b, rounds=0), (4, 8))) - logits).square().mean())
        for b in (3.0, 4.0, 6.0)
    ]
    assert errors[0] > errors[1] > errors[2]


# Refusals -------------------------------------------------------------------------------------------


def test_a_budget_below_all_choices_is_refused(vit: Case) -> None:
    with pytest.raises(UserError, match=r"^liu2021: budget 3\.0 is below the fewest bits of choices, 4$"):
        vit.quantized(liu(budget=3.0, choices=[4, 8]))


def test_a_budget_without_weights_is_refused(vit: Case) -> None:
    rule = {"select": {"operand": "weight"}, "quantize": False}
    with pytest.raises(UserError, match=r"^liu2021: the recipe quantizes no weight of a block; leave budget"):
        vit.quantized(liu(rule, budget=4.0))


def test_settings_out_of_range_are_refused() -> None:
    from pydantic import ValidationError

    for settings in ({"gamma": -1.0}, {"pairs": 0}, {"budget": 1.0}, {"choices": []}, {"choices": [1]}):
        with pytest.raises(ValidationError):
            Liu2021Settings(**settings)  # type: ignore[arg-type]
