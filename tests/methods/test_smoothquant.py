"""SmoothQuant: the factors are the paper's, the function stays, and stretched channels cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, image_shape
from onnx import numpy_helper
from stretched import stretched
from tiny_methods import RECIPES, Case, recipe, sqnr
from torch import Tensor

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe

# LayerNorms and attentions whose factors migrate.
PLACES = {"vit": (5, 2), "swin": (9, 4), "deit_distilled": (5, 2), "mobilevit": (6, 3), "dinov2": (5, 2),
          "vit_average_pool": (5, 2), "vit_features": (4, 2)}  # fmt: skip


def smooth(*rules: dict[str, Any], **settings: Any) -> Recipe:
    return recipe("smoothquant", *rules, methods=[{"name": "smoothquant", **settings}])


def parameters(model: Any, operator: str) -> list[np.ndarray]:
    """The inputs of an operator after its first, float64."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.name == operator)
    return [constants[name].astype(np.float64) for name in node.input[1:]]


def read(case: Case, operator: str) -> np.ndarray:
    """What an operator reads in floating point, [rows, channels]."""
    seen: list[Tensor] = []
    model = SimulatedModel(case.reference, "cpu")
    model(case.images, {operator: lambda _, inputs, __: seen.append(inputs[0].flatten(0, -2))})
    return seen[0].double().numpy()


# The rewrite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PLACES)
def test_the_function_stays_wherever_factors_migrate(family: str) -> None:
    case = Case.of_family(family)
    model = case.quantized(smooth(alpha=0.7))
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not model.changes
    changed = {
        node.name
        for node in case.reference.graph.node
        if node.op_type == "LayerNormalization" and _changed(case, model, node.name)
    }
    projections = {o.name for o in case.operators if o.role == "proj" and _changed(case, model, o.name)}
    assert (len(changed), len(projections)) == PLACES[family]


def _changed(case: Case, model: QuantizedModel, operator: str) -> bool:
    before, after = (parameters(graph, operator)[0] for graph in (case.reference, model.rewritten))
    return not np.array_equal(before, after)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_factors_after_a_layernorm_are_those_of_equation_4(vit: Case, alpha: float) -> None:
    model = vit.quantized(smooth(alpha=alpha, values=False))
    for norm, layer in (("norm1", "qkv"), ("norm2", "fc1")):
        norm, layer = f"blocks.1.{norm}", f"blocks.1.{layer}"
        (gamma, beta), (weight, bias) = parameters(vit.reference, norm), parameters(vit.reference, layer)
        s = np.abs(read(vit, layer)).max(0) ** alpha / np.abs(weight).max(1) ** (1 - alpha)
        (new_gamma, new_beta), (new_weight, new_bias) = (
            parameters(model.rewritten, name) for name in (norm, layer)
        )
        for found, wanted in (
            (new_gamma, gamma / s),
            (new_beta, beta / s),
            (new_weight, weight * s[:, None]),
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
        np.testing.assert_array_equal(new_bias, bias)


def test_factors_of_values_go_into_the_columns_that_make_them(vit: Case) -> None:
    """Queries and keys, the first two thirds of qkv's outputs, stay as they are."""
    model = vit.quantized(smooth(layernorms=False, alpha=0.6))
    (weight, bias), (after, _) = (parameters(vit.reference, f"blocks.0.{name}") for name in ("qkv", "proj"))
    s = np.abs(read(vit, "blocks.0.proj")).max(0) ** 0.6 / np.abs(after).max(1) ** 0.4
    every = np.concatenate([np.ones(2 * len(s)), s])
    found_weight, found_bias = parameters(model.rewritten, "blocks.0.qkv")
    np.testing.assert_allclose(found_weight, weight / every, rtol=1e-5)
    np.testing.assert_allclose(found_bias, bias / every, rtol=1e-5)
    np.testing.assert_allclose(parameters(model.rewritten, "blocks.0.proj")[0], after * s[:, None], rtol=1e-5)


def test_a_channel_without_activations_or_weights_keeps_its_scale() -> None:
    module = FAMILIES["vit"]()
    with torch.no_grad():
        module.blocks[0].norm1.weight[3] = module.blocks[0].norm1.bias[3] = 0  # type: ignore[union-attr, index]
        module.blocks[0].attn.qkv.weight[:, 5] = 0  # type: ignore[union-attr, index]
    case = Case.of(module, image_shape("vit"))
    model = case.quantized(smooth())
    before, after = (parameters(g, "blocks.0.norm1")[0] for g in (case.reference, model.rewritten))
    assert list(np.flatnonzero(before == after)) == [3, 5]
    assert torch.isfinite(case.logits(model)).all()


# What it is for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_stretched_layernorms_are_undone(family: str, alpha: float) -> None:
    """Whatever alpha is: the rewritten models are one."""
    plain = Case.of_family(family)
    hard = Case.of(stretched(FAMILIES[family]()), image_shape(family))
    chosen, bits = smooth(alpha=alpha), (6, 6)
    for operator in ("blocks.0.qkv", "blocks.1.fc1"):
        found, wanted = (
            parameters(case.quantized(chosen, bits).rewritten, operator)[0] for case in (hard, plain)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert hard.sqnr(chosen, bits) > hard.sqnr(recipe("papers"), bits) + 8
    assert abs(plain.sqnr(chosen, bits) - hard.sqnr(chosen, bits)) < 1


def test_outliers_of_values_migrate(vit: Case) -> None:
    """One value channel of each block 60 times as large as it was, and proj's row as much smaller."""
    module = FAMILIES["vit"]()
    with torch.no_grad():
        for block in module.blocks:  # type: ignore[union-attr]
            width = block.attn.proj.in_features  # type: ignore[union-attr]
            block.attn.qkv.weight[2 * width + 7] *= 60  # type: ignore[union-attr, index]
            block.attn.qkv.bias[2 * width + 7] *= 60  # type: ignore[union-attr, index]
            block.attn.proj.weight[:, 7] /= 60  # type: ignore[union-attr, index]
    hard = Case.of(module, image_shape("vit"))
    assert sqnr(hard.floating(), vit.floating()) > 80
    without, chosen = (hard.sqnr(smooth(values=values)) for values in (False, True))
    assert chosen > without + 6
    assert abs(chosen - vit.sqnr(smooth())) < 1


# fc2 -----------------------------------------------------------------------------------------------


def loud(case_of: str = "vit") -> Case:
    """fc2 of block 1 reads one channel with far larger values than the others."""
    module = FAMILIES[case_of]()
    with torch.no_grad():
        module.blocks[1].mlp.fc1.bias[9] = 40  # type: ignore[union-attr, index]
    return Case.of(module, image_shape(case_of))


def test_layers_that_lose_most_are_multiplied_before() -> None:
    case = loud()
    model = case.quantized(smooth(multiplied=1, alpha=0.5))
    found = [node for node in model.edited.graph.node if node.name.endswith("/factors")]
    assert [(node.op_type, node.name) for node in found] == [("Mul", "blocks.1.fc2/factors")]
    wanted = case.floating()
    assert (
        SimulatedModel(model.rewritten, "cpu")(case.images) - wanted
    ).abs().max() <= 1e-5 * wanted.abs().max()
    weight = parameters(case.reference, "blocks.1.fc2")[0]
    s = np.sqrt(np.abs(read(case, "blocks.1.fc2")).max(0) / np.abs(weight).max(1))
    np.testing.assert_allclose(parameters(model.rewritten, "blocks.1.fc2")[0], weight * s[:, None], rtol=1e-5)
    roles = [{o.name: o.role for o in operators} for operators in (case.operators, model.operators)]
    assert roles[1] == {**roles[0], "blocks.1.fc2/factors": None}
    bits = (8, 6)
    assert case.sqnr(smooth(multiplied=1), bits) > case.sqnr(smooth(), bits) + 3
    placements = deploy(model.edited, model.quantized, "fast").placements
    assert {place.runs for place in placements.values()} == {"integer"}


def test_more_are_asked_for_than_there_are(vit: Case) -> None:
    model = vit.quantized(smooth(multiplied=9))
    found = [node.name for node in model.edited.graph.node if node.name.endswith("/factors")]
    assert found == ["blocks.0.fc2/factors", "blocks.1.fc2/factors"]


# Switches, refusals, deployed ---------------------------------------------------------------------


def test_with_both_places_off_it_is_its_base(vit: Case) -> None:
    found = vit.logits(vit.quantized(smooth(layernorms=False, values=False), (4, 4)))
    assert torch.equal(found, vit.logits(vit.quantized(recipe("papers"), (4, 4))))


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rule = {"select": {"role": ["qkv", "proj", "fc1", "head"], "operand": "input"}, "quantize": False}
    with pytest.raises(UserError, match=r"^smoothquant: no quantized linear layer .* leave the method out$"):
        vit.quantized(smooth(rule))


def test_what_another_method_has_fixed_is_refused(vit: Case) -> None:
    calls = [{"name": "repq_vit", "log_sqrt2": False}, {"name": "smoothquant"}]
    with pytest.raises(UserError, match=r"^smoothquant: .*'blocks.0.fc1'.*name smoothquant before it$"):
        vit.quantized(recipe("repq_vit", methods=calls))
    assert vit.quantized(recipe("repq_vit", methods=calls[::-1]))


def test_alpha_is_a_share(tmp_path: Path) -> None:
    (tmp_path / "papers.yaml").write_bytes((RECIPES / "papers.yaml").read_bytes())
    path = tmp_path / "mine.yaml"
    path.write_text("extends: papers\nmethods: [{name: smoothquant, alpha: 1.5}]\n")
    with pytest.raises(UserError, match=r"methods\[0\]: alpha: 1\.5 is too large"):
        load_recipe(path)


def test_fast_has_the_same_kernels_as_without_it(vit: Case) -> None:
    runs = []
    for chosen in (smooth(), recipe("papers")):
        model = vit.quantized(chosen)
        placements = deploy(model.edited, model.quantized, "fast").placements
        runs.append({name: place.runs for name, place in placements.items()})
    assert runs[0] == runs[1]
