"""ERQ: the regressions and the flips are those of the equations, computed here the long way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import Case, recipe, sqnr
from torch import Tensor

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.methods.erq import ERQ, ERQSettings, flipped, halved
from ptq2themoon.quantize.calibration import fit
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import LogSqrt2
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)


def erq(*rules: dict[str, Any], **settings: Any) -> Recipe:
    """On re-parameterised LayerNorms, with an even softmax."""
    base = {"name": "repq_vit", "log_sqrt2": False}
    return recipe("erq", *rules, methods=[base, {"name": "erq", **settings}])


def read(model: SimulatedModel, images: Tensor, operator: str) -> np.ndarray:
    """What an operator reads, float64 [rows, in]."""
    seen: list[Tensor] = []
    model(images, {operator: lambda _, inputs, __: seen.append(inputs[0].flatten(0, -2))})
    return seen[0].double().numpy()


# Activations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_layers_are_regressed_on_their_quantized_inputs(vit: Case, ridge: float) -> None:
    """As least squares with one more row for each weight, which draws it to what it was."""
    model = vit.quantized(erq(ridge=ridge, weights=False), BITS)
    first = {layer.name: layer for layer in linear_layers(Graph(model.rewritten))}
    floating, quantized = SimulatedModel(model.rewritten, "cpu"), simulated(model, "cpu")
    for layer in linear_layers(model.graph()):
        before = first[layer.name].weight.astype(np.float64)
        assert first[layer.name].bias is not None
        wanted = read(floating, vit.images, layer.name) @ before + first[layer.name].bias
        x = read(quantized, vit.images, layer.name)
        n, size = x.shape
        pull = np.sqrt(ridge * x.var(0).mean() * n) * np.eye(size)
        rows = np.block([[x, np.ones((n, 1))], [pull, np.zeros((size, 1))]])
        found = np.linalg.lstsq(rows, np.concatenate([wanted, pull @ before]), rcond=None)[0]
        np.testing.assert_allclose(layer.weight, found[:-1], rtol=0, atol=2e-3 * np.abs(before).max())
        np.testing.assert_allclose(layer.bias, found[-1], rtol=0, atol=2e-3 * np.abs(wanted).max())


def test_weights_have_the_quantizer_that_fits_what_was_regressed(vit: Case) -> None:
    model = vit.quantized(erq(weights=False), BITS)
    for slot, tensor in model.slots():
        if slot.operand == "weight" and slot.operator != "patch_embed":
            (layer,) = (each for each in linear_layers(model.graph()) if each.name == slot.operator)
            assert tensor.quantizer == fit(slot, tensor, torch.tensor(layer.stored(layer.weight)))


# Weights ------------------------------------------------------------------------------------------


@dataclass
class Grid:
    """Rows of a weight with one step for each output, `bits` wide."""

    step: np.ndarray
    bits: int = 3

    def rounded(self, rows: Tensor, _: Tensor) -> Tensor:
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return (rows / torch.tensor(self.step)).round().clamp(low, high) * torch.tensor(self.step)

    def other_side(self, rows: Tensor, nearest: Tensor, _: Tensor) -> Tensor:
        found = nearest + (rows - nearest).sign() * torch.tensor(self.step)
        return torch.where((self.rounded(found, _) - found).abs() < 1e-9, found, nearest)


def flip_one_output(error: np.ndarray, move: np.ndarray, second: np.ndarray, flips: int) -> np.ndarray:
    """The error [n] of one output after its flips; `move`: to the other side."""
    error, move = error.copy(), move.copy()
    for _ in range(flips):
        gradient = 2 * second @ error
        fitting = [i for i in range(len(error)) if gradient[i] * error[i] > 0 and move[i] != 0]
        if not fitting:
            break
        best = max(fitting, key=lambda i: abs(gradient[i]))
        other = error.copy()
        other[best] += move[best]
        if other @ second @ other >= error @ second @ error:
            break
        error, move[best] = other, -move[best]
    return error


def half_by_half(weight: np.ndarray, second: np.ndarray, grid: Grid, settings: ERQSettings) -> np.ndarray:
    """One output after another."""
    result = np.zeros_like(weight)
    for output, column in enumerate(weight.T):
        one = Grid(grid.step[[output]], grid.bits)
        current, start, size = column.copy(), 0, len(column)
        while start < size:
            end = start + (size - start + 1) // 2
            rows = torch.tensor(current[start:end, None])
            near = one.rounded(rows, rows)
            move = (one.other_side(rows, near, rows) - near).numpy()[:, 0]
            error = (near - rows).numpy()[:, 0]
            error = flip_one_output(error, move, second[start:end, start:end], settings.flips)
            current[start:end] += error
            if end < size:
                rest = second[end:, end:]
                ridge = settings.ridge * np.diag(rest).mean() * np.eye(size - end)
                current[end:] -= np.linalg.solve(rest + ridge, second[end:, start:end] @ error)
            start = end
        result[:, output] = current
    return result


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A weight [21, 9], second moments of correlated inputs, and steps."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(150, 21)) @ rng.normal(size=(21, 21)) + rng.normal(size=21)
    weight = rng.normal(size=(21, 9))
    return weight, x.T @ x / len(x), Grid(2 * np.abs(weight).max(0) / 7)


@pytest.mark.parametrize("flips", [0, 3, 100])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_half_by_half_is_the_equations(seed: int, flips: int) -> None:
    weight, second, grid = problem(seed)
    settings = ERQSettings(flips=flips, ridge=0.05)
    found = halved(torch.tensor(weight), torch.tensor(second), grid, settings).numpy()
    np.testing.assert_allclose(found, half_by_half(weight, second, grid, settings), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_flips_only_gain_and_go_to_neighbours(seed: int) -> None:
    weight, second, grid = problem(seed)
    rows = torch.tensor(weight)
    near = grid.rounded(rows, rows)
    found = flipped(rows, near, grid.other_side(rows, near, rows), torch.tensor(second), 100)

    def proxy(value: Tensor) -> np.ndarray:
        error = (value - rows).numpy()
        return np.einsum("io,ij,jo->o", error, second, error)

    assert (proxy(found) <= proxy(near) + 1e-12).all()
    assert (proxy(found) < 0.9 * proxy(near)).any()
    assert ((found - rows).abs().numpy() <= grid.step * (1 + 1e-9)).all() or not torch.equal(found, near)
    torch.testing.assert_close(grid.rounded(found, found), found)


# What it promises ---------------------------------------------------------------------------------


def test_with_both_steps_off_it_is_its_base(vit: Case) -> None:
    found = vit.logits(vit.quantized(erq(activations=False, weights=False), BITS))
    base = recipe("repq_vit", methods=[{"name": "repq_vit", "log_sqrt2": False}])
    assert torch.equal(found, vit.logits(vit.quantized(base, BITS)))


@pytest.mark.parametrize("family", ["vit", "swin", "mobilevit"])
def test_weights_lie_on_one_grid_for_each_output(family: str) -> None:
    """So integer kernels take them: one scale for each output channel, none on the axis of the sum."""
    case = Case.of_family(family)
    model = case.quantized(erq(), (4, 8))
    simulation = simulated(model, "cpu")
    layers = {layer.name: layer for layer in linear_layers(model.graph())}
    for slot, tensor in model.slots():
        if slot.operand == "weight" and slot.operator in layers:
            layer, quantizer = layers[slot.operator], tensor.ready()
            assert quantizer.scale.shape == (layer.weight.shape[1],)
            stored = torch.tensor(layer.stored(layer.weight))
            torch.testing.assert_close(quantizer(stored), stored, rtol=1e-5, atol=1e-7)
            assert torch.equal(simulation.parameter(layer.name, 1), stored)
    placements = deploy(model.edited, model.quantized, "fast").placements
    assert {place.runs for name, place in placements.items() if name in layers} == {"integer"}


@pytest.mark.parametrize("family", ["vit", "swin", "mobilevit"])
def test_each_step_gains_at_low_bits(family: str) -> None:
    case = Case.of_family(family)

    def found(**settings: Any) -> float:
        return sqnr(case.logits(case.quantized(erq(**settings), BITS)), case.floating())

    base = found(activations=False, weights=False)
    assert found(weights=False) > base + 1
    assert found() > found(weights=False) - 1


def test_a_recipe_without_weights_is_refused(vit: Case) -> None:
    rule = {"select": {"role": ["qkv", "proj", "fc1", "fc2", "head"], "operand": "weight"}, "quantize": False}
    with pytest.raises(UserError, match=r"^erq: the recipe quantizes no weight"):
        vit.quantized(erq(rule))


def test_weights_without_equal_steps_are_refused(vit: Case) -> None:
    base = recipe("papers")
    model: QuantizedModel = vit.quantized(base)
    for _, tensor in model.slots():
        if tensor.operand == "weight":
            tensor.quantizer = LogSqrt2(torch.tensor(1.0), 4)
    with pytest.raises(UserError, match=r"^erq: .* kind log_sqrt2; say weights: false"):
        ERQ(ERQSettings()).after(model, Tools(base, BITS, vit.images.split(8), 0, "cpu"))
