"""GPTQ: the rounded weights are those of optimal brain quantization, one channel after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import Case, recipe, sqnr
from torch import Tensor, nn

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods.gptq import GPTQSettings, compensated, inverse_factor
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

FLOATING_INPUTS: dict[str, Any] = {"select": {"operand": "input"}, "quantize": False}


def gptq(*rules: dict[str, Any], **settings: Any) -> Recipe:
    return recipe("gptq", *rules, methods=[{"name": "gptq", **settings}])


def weights(model: QuantizedModel) -> dict[str, np.ndarray]:
    """Of all linear layers, float64 [in, out], by name."""
    return {layer.name: layer.weight.astype(np.float64) for layer in linear_layers(model.graph())}


def scales(model: QuantizedModel) -> dict[str, np.ndarray]:
    """Of all weights, [out] or 0-d, by operator."""
    return {
        slot.operator: tensor.ready().scale.double().numpy()
        for slot, tensor in model.slots()
        if tensor.operand == "weight"
    }


def read(case: Case, model: QuantizedModel, operator: str) -> np.ndarray:
    """What an operator reads in the quantized model, float64 [rows, in]."""
    seen: list[Tensor] = []
    simulated(model, "cpu")(
        case.images, {operator: lambda _, inputs, __: seen.append(inputs[0].flatten(0, -2))}
    )
    return seen[0].double().numpy()


def rounded(row: np.ndarray, scale: np.ndarray, bits: int = 4) -> np.ndarray:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return np.clip(np.rint(row / scale), low, high) * scale


def obq(
    weight: np.ndarray, scale: np.ndarray, x: np.ndarray, damping: float, order: np.ndarray
) -> np.ndarray:
    """Equations 2 and 3, one channel after another, on a whole inverse that shrinks by elimination."""
    hessian = 2 * x.T @ x / len(x)
    inverse = np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian)))
    left, found = weight.copy(), np.zeros_like(weight)
    for q in order:
        found[q] = rounded(left[q], scale)
        left = left - np.outer(inverse[:, q] / inverse[q, q], left[q] - found[q])
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return found


# Against the equations ----------------------------------------------------------------------------


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_every_layer_is_rounded_as_optimal_brain_quantization_does(
    vit: Case, act_order: bool, damping: float
) -> None:
    """X is what the layer reads in the quantized model: with the weights before it rounded so."""
    bits = (4, 4)
    model = vit.quantized(gptq(act_order=act_order, damping=damping, block_size=16), bits)
    before, after, scale = weights(vit.quantized(recipe("papers"), bits)), weights(model), scales(model)
    assert before.keys() == after.keys() == scale.keys() - {"patch_embed"}
    for name in ("blocks.0.qkv", "blocks.0.fc1", "blocks.1.proj", "blocks.1.fc2", "head"):
        x = read(vit, model, name)
        order = np.arange(x.shape[1])
        if act_order:
            order = np.argsort(-np.square(x).sum(0), kind="stable")
        wanted = obq(before[name], scale[name], x, damping, order)
        off = np.abs(after[name] - wanted) / scale[name]
        assert np.allclose(after[name] / scale[name], np.rint(after[name] / scale[name]), atol=1e-3), name
        assert (off > 0.5).mean() < 0.01, name  # a tie that falls the other way moves what follows it


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Uniform]:
    """A weight [24, 10], a Hessian of correlated inputs, and the weight's quantizer of 3 bits."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 24, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(24, 10, generator=generator, dtype=torch.float64)
    scale = (2 * weight.abs().amax(0) / 7).float()
    return weight, 2 * x.T @ x / len(x), Uniform(scale, torch.zeros(10), 3, -4, 3, 1)


def plain(quantizer: Uniform) -> Any:
    return lambda rows, _: quantizer(rows.float()).double()


def test_the_factor_has_the_rows_of_the_shrinking_inverse() -> None:
    _, hessian, _ = problem()
    factor = inverse_factor(hessian, 0.01).numpy()
    damped = hessian.numpy() + 0.01 * hessian.diagonal().mean().item() * np.eye(24)
    inverse = np.linalg.inv(damped)
    for q in range(24):
        np.testing.assert_allclose(factor[q, q:], inverse[q, q:] / np.sqrt(inverse[q, q]), rtol=1e-6)
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]


@pytest.mark.parametrize("act_order", [False, True])
def test_blocks_change_nothing(act_order: bool) -> None:
    weight, hessian, quantizer = problem()
    found = [
        compensated(weight, hessian, plain(quantizer), GPTQSettings(block_size=size, act_order=act_order))
        for size in (1, 7, 24, 128)
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_the_output_shrinks(seed: int) -> None:
    weight, hessian, quantizer = problem(seed)

    def error(found: Tensor) -> float:
        off = found - weight
        return float((off * (hessian @ off)).sum())

    nearest = error(quantizer(weight.float()).double())
    assert error(compensated(weight, hessian, plain(quantizer), GPTQSettings())) < 0.8 * nearest


def test_channels_that_do_not_depend_on_each_other_are_only_rounded() -> None:
    weight, _, quantizer = problem()
    hessian = torch.diag(torch.rand(24, dtype=torch.float64) + 0.1)
    hessian[3, 3] = 0  # an input that is always 0
    found = compensated(weight, hessian, plain(quantizer), GPTQSettings(act_order=True))
    assert torch.equal(found, quantizer(weight.float()).double())


# What it promises ---------------------------------------------------------------------------------


def test_with_huge_damping_it_is_its_base(vit: Case) -> None:
    found = vit.logits(vit.quantized(gptq(damping=1e15), (4, 4)))
    assert torch.equal(found, vit.logits(vit.quantized(recipe("papers"), (4, 4))))


@pytest.mark.parametrize("family", ["vit", "swin", "mobilevit"])
def test_weights_lie_on_the_recipe_s_grid_and_scales_stay(family: str) -> None:
    case = Case.of_family(family)
    model, base = (case.quantized(chosen, (4, 8)) for chosen in (gptq(), recipe("papers")))
    quantizers = [dict(each.slots()) for each in (model, base)]
    assert {s: t.quantizer for s, t in quantizers[0].items()} == {
        s: t.quantizer for s, t in quantizers[1].items()
    }
    assert not model.rewrite
    simulation = simulated(model, "cpu")
    before, after = weights(base), weights(model)
    for slot, tensor in quantizers[0].items():
        if slot.operand == "weight" and slot.operator in after:
            stored = simulation.parameter(slot.operator, 1)
            torch.testing.assert_close(tensor.ready()(stored), stored, rtol=1e-6, atol=0)
            assert not np.array_equal(before.pop(slot.operator), after[slot.operator])
    for name, untouched in before.items():  # Swin's reduction has no role, and so is not quantized
        np.testing.assert_array_equal(untouched, after[name])


@pytest.mark.parametrize("family", ["vit", "swin", "mobilevit"])
def test_low_bits_gain(family: str) -> None:
    """Weights alone quantized, at 3 bits."""
    case = Case.of_family(family)
    convolutions: dict[str, Any] = {"select": {"role": "patch_embed"}, "optional": True, "quantize": False}
    found, base = (
        sqnr(case.logits(case.quantized(chosen, (3, 8))), case.floating())
        for chosen in (
            gptq(FLOATING_INPUTS, convolutions, act_order=True),
            recipe("papers", FLOATING_INPUTS, convolutions),
        )
    )
    assert found > base + 1


@pytest.mark.parametrize("rule", [{"granularity": "per-tensor"}, {"weight_axis": "input"}], ids=str)
def test_scales_of_other_granularity(vit: Case, rule: dict[str, str]) -> None:
    chosen = {"select": {"operand": "weight"}, **rule}
    found = vit.sqnr(gptq(chosen), (4, 8))
    assert found > vit.sqnr(recipe("papers", chosen), (4, 8)) - 1


class Rows(nn.Module):
    """Two Gemms, which hold their weights transposed; the second reads an input that is always 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 5)
        with torch.no_grad():
            self.first.bias[4] = -100

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).relu())


def test_transposed_weights_and_an_input_that_is_always_0() -> None:
    case = Case.of(Rows().eval(), (1, 4, 4))
    assert "Gemm" in {node.op_type for node in case.reference.graph.node}
    everything = {"select": {}, "quantize": False}
    only = {"select": {"operand": "weight"}, "quantize": True, "granularity": "per-channel",
            "observer": "minmax", "weight_axis": "output"}  # fmt: skip
    found, base = (
        case.quantized(recipe("vanilla_once", everything, only, methods=methods), (4, 8))
        for methods in ([{"name": "gptq", "act_order": True}], [])
    )
    (_, name) = weights(found)
    np.testing.assert_allclose(
        weights(found)[name][4] / scales(found)[name],
        np.rint(weights(base)[name][4] / scales(base)[name]),
        atol=1e-3,
    )
    assert sqnr(case.logits(found), case.floating()) > sqnr(case.logits(base), case.floating())


def test_a_recipe_without_weights_is_refused(vit: Case) -> None:
    rule = {"select": {"role": ["qkv", "proj", "fc1", "fc2", "head"], "operand": "weight"}, "quantize": False}
    with pytest.raises(UserError, match=r"^gptq: the recipe quantizes no weight"):
        vit.quantized(gptq(rule))


def test_fast_has_the_weights_of_the_simulation_on_integer_kernels(vit: Case) -> None:
    model = vit.quantized(gptq())
    placements = deploy(model.edited, model.quantized, "fast").placements
    assert {place.runs for place in placements.values()} == {"integer"}
