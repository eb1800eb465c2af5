"""Samples of what operators read, shifts of it, and edits of what an edit brought."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import SWIN, made
from onnx import helper
from tiny_methods import Case, recipe

from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.samples import Sample, sampled_inputs
from ptq2themoon.quantize.shift import shift, shiftable
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tools import Tools

# Samples ------------------------------------------------------------------------------------------


def rows_of(batches: list[torch.Tensor], size: int, seed: int = 0) -> torch.Tensor:
    sample = Sample(size, 1, torch.Generator().manual_seed(seed))
    for batch in batches:
        sample.add([batch])
    return sample.values[0]


def test_a_sample_has_no_more_pieces_than_asked_for_and_all_where_there_are_fewer() -> None:
    batches = list(torch.arange(120.0).reshape(4, 5, 3, 2))
    assert rows_of(batches, 7).shape == (7, 2)
    assert torch.equal(rows_of(batches, 1000), torch.arange(120.0).reshape(60, 2))


def test_a_sample_is_drawn_evenly_from_all_batches_and_by_its_seed_alone() -> None:
    batches = [torch.full((50, 1), float(i)) for i in range(8)]
    found = rows_of(batches, 200)
    counts = found[:, 0].long().bincount(minlength=8)
    assert counts.sum() == 200
    assert counts.min() > 10
    assert torch.equal(found, rows_of(batches, 200))
    assert not torch.equal(found, rows_of(batches, 200, seed=1))
    assert torch.equal(found, found.sort(0).values)  # in the order in which they passed


def test_inputs_of_one_operator_are_sampled_alike() -> None:
    sample = Sample(3, 2, torch.Generator().manual_seed(0))
    left = torch.arange(24.0).reshape(3, 2, 2, 2)
    sample.add([left, -left.mT])
    one, other = sample.values
    assert one.shape == (3, 2, 2)
    assert torch.equal(other, -one.mT)


def test_rows_of_layers_and_matrices_of_products() -> None:
    case = Case.of_family("vit")
    model = SimulatedModel(case.reference, "cpu")
    found = sampled_inputs(model, case.images.split(8), {"blocks.0.fc1": 1, "blocks.0.attn_scores": 2}, 9, 0)
    assert [tuple(v.shape) for v in found["blocks.0.fc1"]] == [(9, 32)]
    assert [len(v) for v in found["blocks.0.attn_scores"]] == [9, 9]
    q, k = found["blocks.0.attn_scores"]
    assert (q @ k).shape[1:] == (17, 17)


# Shifts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, 3])
def test_a_shift_passes_no_zeros_that_are_padded(window: int) -> None:
    """Windows of 3 x 3 do not divide 8 x 8 tokens: there an Add stands after the Pad, before qkv."""
    case = Case.of(made("swin_tiny_patch4_window7_224", **{**SWIN, "window_size": window}), (3, 32, 32))
    model = QuantizedModel(case.reference, list(case.operators))
    names = [layer.name for layer in linear_layers(model.graph()) if layer.name.endswith("qkv")]
    groups = list(shiftable(model, names))
    assert sorted(name for group in groups for name in group.readers) == sorted(names)
    assert {group.norm is None for group in groups} == {window == 3}
    generator = np.random.default_rng(0)
    for group in groups:
        width = next(len(x.weight) for x in linear_layers(model.graph()) if x.name == group.readers[0])
        shift(model, group, generator.uniform(-1, 1, width))
    wanted, found = (SimulatedModel(m, "cpu")(case.images) for m in (case.reference, model.rewritten))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    roles = {o.name: o.role for o in model.operators if not o.name.endswith("/shift")}
    assert roles == {o.name: o.role for o in case.operators}


def test_a_layer_without_a_bias_gets_one() -> None:
    case = Case.of_family("swin")
    model = QuantizedModel(case.reference, list(case.operators))
    (name,) = (layer.name for layer in linear_layers(model.graph()) if layer.bias is None)
    (group,) = shiftable(model, [name])
    width = next(len(layer.weight) for layer in linear_layers(model.graph()) if layer.name == name)
    shift(model, group, np.full(width, 0.5))
    wanted, found = (SimulatedModel(m, "cpu")(case.images) for m in (case.reference, model.rewritten))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# Tools --------------------------------------------------------------------------------------------


def test_what_is_shown_is_not_quantized() -> None:
    case = Case.of_family("vit")
    model = case.quantized(recipe("papers"), (2, 2))
    tools = Tools(recipe("papers"), (2, 2), case.images.split(8), 0, "cpu")
    slots = {slot for slot, _ in model.slots() if slot.operator == "blocks.1.fc2"}
    seen: dict[str, list[torch.Tensor]] = {}
    tools.show(model, slots, lambda slot, value: seen.setdefault(slot.operand, []).append(value.clone()))
    exact: list[torch.Tensor] = []
    floating = SimulatedModel(case.reference, "cpu")
    floating(case.images, {"blocks.1.fc2": lambda _, inputs, __: exact.append(inputs[0].clone())})
    assert len(seen["weight"]) == 1
    assert torch.equal(seen["weight"][0], floating.parameter("blocks.1.fc2", 1))
    torch.testing.assert_close(torch.cat(seen["input"]), exact[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [["blocks.0.fc1"], ["blocks.0.fc2"]], ids=["wide", "narrow"])
def test_output_errors_are_those_of_the_products(layers: list[str]) -> None:
    """More outputs than inputs, and fewer: two ways of computing, one number."""
    case = Case.of_family("vit")
    chosen = recipe("papers")
    tools = Tools(chosen, (3, 8), case.images.split(8), 0, "cpu")
    model = QuantizedModel(case.reference, list(case.operators))
    quantized = case.quantized(chosen, (3, 8))
    (layer,) = (each for each in linear_layers(model.graph()) if each.name in layers)
    rounded = dict(quantized.slots())[layer.name, "weight", 1].ready()(torch.tensor(layer.weight)).double()  # type: ignore[index]
    x = torch.randn(40, len(layer.weight), generator=torch.Generator().manual_seed(0))
    read = (x * 4).round() / 4
    wanted = (read.double() @ rounded - x.double() @ torch.tensor(layer.weight).double()).square().sum()
    assert tools.output_error(model, layers, x)(read) == pytest.approx(float(wanted), rel=1e-4)


# Edits --------------------------------------------------------------------------------------------


def test_an_operator_that_an_edit_brought_can_be_replaced_and_what_stands_beside_it_stays() -> None:
    case = Case.of_family("vit")
    model = QuantizedModel(case.reference, list(case.operators))
    (node,) = (n for n in model.graph().nodes if n.name == "blocks.0.gelu")
    first = helper.make_node("Identity", node.input, ["a"], name="first")
    second = helper.make_node("Gelu", ["a"], node.output, name="blocks.0.gelu")
    model.replace_operators({"blocks.0.gelu": [first, second]}, {}, equal=True)
    third = helper.make_node("Identity", ["a"], ["b"], name="third")
    fourth = helper.make_node("Gelu", ["b"], node.output, name="blocks.0.gelu")
    model.replace_operators({"blocks.0.gelu": [third, fourth]}, {}, equal=True)
    names = [n.name for n in model.edited.graph.node]
    assert [name for name in names if name in ("first", "third", "blocks.0.gelu")] == [
        "first", "third", "blocks.0.gelu"
    ]  # fmt: skip
    assert torch.equal(SimulatedModel(model.edited, "cpu")(case.images), case.floating())
