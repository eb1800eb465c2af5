"""Linear layers in graph order: sums over what they read, weights put in force, ways of values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import Case, recipe
from torch import Tensor, nn

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tools import Tools

RECIPE = recipe("papers")


@pytest.fixture(scope="module")
def vit() -> Case:
    return Case.of_family("vit")


def tools(case: Case) -> Tools:
    return Tools(RECIPE, (4, 4), case.images.split(8), 0, "cpu")


def read(model: SimulatedModel, case: Case) -> dict[str, Tensor]:
    """What each linear layer reads, float64 [rows, in]."""
    seen: dict[str, Tensor] = {}

    def see(name: str, inputs: list[Tensor], _: list[Tensor]) -> None:
        seen[name] = inputs[0].flatten(0, -2).double()

    from_graph = [layer.name for layer in linear_layers(case_graph(case))]
    model(case.images, dict.fromkeys(from_graph, see))
    return seen


def case_graph(case: Case) -> Any:
    return QuantizedModel(case.reference, case.operators).graph()


def test_layers_come_in_graph_order_with_weights_as_in_out(vit: Case) -> None:
    layers = linear_layers(case_graph(vit))
    names = [f"blocks.{block}.{role}" for block in (0, 1) for role in ("qkv", "proj", "fc1", "fc2")]
    assert [layer.name for layer in layers] == [*names, "head"]
    assert [layer.weight.shape for layer in layers[:4]] == [(32, 96), (32, 32), (32, 128), (128, 32)]
    assert [layer.transposed for layer in layers] == [False] * 8 + [True]
    assert layers[-1].weight.shape == (32, 5)
    assert layers[-1].stored(layers[-1].weight).shape == (5, 32)


def test_maxima_are_over_all_images_and_tokens(vit: Case) -> None:
    model = QuantizedModel(vit.reference, vit.operators)
    wanted = read(SimulatedModel(vit.reference, "cpu"), vit)
    found = tools(vit).input_maxima(model, wanted)
    for name, rows in wanted.items():
        np.testing.assert_allclose(found[name], rows.abs().amax(0), rtol=1e-5, atol=1e-6)


def test_sums_are_those_of_the_quantized_and_of_the_exact_rows(vit: Case) -> None:
    model = vit.quantized(RECIPE, (4, 4))
    quantized, exact = (read(m, vit) for m in (simulated(model, "cpu"), tools(vit).floating(model)))
    its = tools(vit)
    stopped = []
    with its.without_gradients():
        for stop in its.walk(model, quantized, exact=True):
            name = stop.layer.name
            stopped.append(name)
            x, d = quantized[name], exact[name] - quantized[name]
            found = stop.moments(exact=True)
            assert found.count == len(x)
            assert found.cross is not None
            assert found.difference is not None
            for sums, wanted in (
                (found.gram, x.T @ x),
                (found.total, x.sum(0)),
                (found.cross, x.T @ d),
                (found.difference, d.sum(0)),
            ):
                scale = float(wanted.abs().max())
                torch.testing.assert_close(sums, wanted, rtol=0, atol=2e-3 * scale)
    assert stopped == [layer.name for layer in linear_layers(case_graph(vit))]


def test_a_new_weight_is_in_force_for_what_follows_and_ends_in_the_model(vit: Case) -> None:
    model, its = vit.quantized(RECIPE, (4, 4)), tools(vit)
    before = read(simulated(model, "cpu"), vit)
    seen = {}
    with its.without_gradients():
        for stop in its.walk(model, ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.qkv", "head"]):
            seen[stop.layer.name] = torch.cat(list(stop.rows())).double()
            if stop.layer.name == "blocks.0.fc2":
                stop.put(stop.matrix() * 0.5, torch.ones(32))
    after = read(simulated(model, "cpu"), vit)
    assert torch.equal(seen["blocks.0.fc1"], before["blocks.0.fc1"])
    assert not torch.allclose(seen["blocks.1.qkv"], before["blocks.1.qkv"])
    for name, rows in seen.items():
        torch.testing.assert_close(rows, after[name])
    layers = {layer.name: layer for layer in linear_layers(model.graph())}
    first = {layer.name: layer for layer in linear_layers(case_graph(vit))}
    np.testing.assert_allclose(layers["blocks.0.fc2"].weight, first["blocks.0.fc2"].weight / 2)
    assert (layers["blocks.0.fc2"].bias == 1).all()
    assert not model.rewrite


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("layer", ["blocks.0.fc1", "head"])
def test_rows_are_rounded_as_the_whole_weight_is(vit: Case, layer: str, axis: str) -> None:
    rule = {"select": {"operand": "weight"}, "weight_axis": axis}
    model, its = vit.quantized(recipe("papers", rule), (4, 4)), tools(vit)
    index = torch.tensor([7, 0, 30])
    with its.without_gradients():
        (stop,) = its.walk(model, [layer])
    whole = stop.rounded(stop.matrix(), torch.arange(32))
    rows = stop.matrix()[index]
    nearest = stop.rounded(rows, index)
    assert torch.equal(nearest, whole[index])
    other = stop.other_side(rows, nearest, index)
    scale = stop.weight.ready().scale.double()  # type: ignore[union-attr]
    step = scale[index][:, None] if axis == "input" else scale
    moved = (other - nearest).abs()
    torch.testing.assert_close(moved[moved > 0], step.expand_as(moved)[moved > 0])
    between = (torch.minimum(nearest, other) <= rows) & (rows <= torch.maximum(nearest, other))
    assert between[moved > 0].all()
    assert (moved > 0).float().mean() > 0.7  # the others lie at the ends of the grid


# Ways of values -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """One block of a transformer; `way`: what else happens to the values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.patch = nn.Conv2d(1, 16, 4, 4)
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
        if self.way == "added":
            mixed = mixed + v
        if self.way == "interleaved":
            mixed = mixed.transpose(-2, -1)
            out = mixed.reshape(-1, 2, 8, 16).permute(0, 3, 2, 1).reshape(-1, 16, 16)
        else:
            out = mixed.transpose(1, 2).reshape(-1, 16, 16)
        x = x + self.proj(out)
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def paths(way: str) -> list[list[int]]:
    case = Case.of(Attention(way).eval(), (1, 16, 16))
    found = tools(case).value_paths(QuantizedModel(case.reference, case.operators))
    return [path.columns.tolist() for path in found]


def test_values_are_followed_past_reshapes_and_transposes() -> None:
    assert paths("plain") == [list(range(32, 48))]
    assert paths("interleaved") == [[32 + 8 * head + i for i in range(8) for head in (0, 1)]]


def test_values_that_something_else_reads_have_no_way() -> None:
    assert paths("added") == []
