"""Bias correction: each bias loses the mean error of its layer, with those before it corrected already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe, sqnr
from torch import Tensor, nn

from ptq2themoon.evaluate.accuracy import floating_metrics
from ptq2themoon.methods.bias_correction import correctable
from ptq2themoon.quantize.calibration import fit
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

METHOD = [{"name": "bias_correction"}]
# The graph's output is quantized even where its readers quantize each activation.
FLOATING: dict[str, Any] = {"select": {"operand": ["bias", "output"]}, "quantize": False}


class Layers(nn.Module):
    """Three linear layers with GELU between them, the second without a bias; rows of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (
            nn.Linear(16, 12),
            nn.Linear(12, 12, bias=False),
            nn.Linear(12, 5),
        )

    @property
    def layers(self) -> list[nn.Linear]:
        return [self.first, self.second, self.third]

    def forward(self, x: Tensor) -> Tensor:
        act = nn.functional.gelu
        return self.third(act(self.second(act(self.first(x.flatten(1))))))


@dataclass
class Corrected:
    """A model of `Layers`, quantized at 4 bits with and without the method."""

    case: Case
    model: QuantizedModel
    plain: QuantizedModel


@pytest.fixture(scope="module")
def layers() -> Corrected:
    case = Case.of(Layers().eval(), (1, 4, 4))
    found = [
        case.quantized(recipe("vanilla_once", FLOATING, methods=methods), (4, 4)) for methods in (METHOD, [])
    ]
    return Corrected(case, *found)


@pytest.fixture(scope="module", params=["vit", "swin", "mobilevit"])
def family(request: pytest.FixtureRequest) -> Case:
    return Case.of_family(request.param)


def fake_quantized(model: QuantizedModel, operator: str, position: int, value: Tensor) -> Tensor:
    """With the symmetric scale that was found for an operator's input, if there is one."""
    for slot, tensor in model.slots():
        if (slot.operator, slot.position) == (operator, position) and slot.operand != "output":
            scale = tensor.ready().scale.double()
            return (value / scale).round().clamp(-8, 7) * scale
    return value


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def errors(case: Case, model: QuantizedModel) -> dict[str, Tensor]:
    """Mean error of each channel of each layer's output, in units of that output's mean magnitude."""
    tools = Tools(recipe("papers"), (8, 8), case.images.split(8), 0, "cpu")
    axes = {n.name: 1 if n.op_type == "Conv" else -1 for n in correctable(model.graph())}
    axes = {name: axis for name, axis in axes.items() if name in {i.operator.name for i in model.quantized}}
    wanted = tools.channel_means(SimulatedModel(model.rewritten, "cpu"), axes)
    found = tools.channel_means(simulated(model, "cpu"), axes)
    return {name: (found[name] - wanted[name]) / wanted[name].abs().mean() for name in axes}


# Against the equation -----------------------------------------------------------------------------


def test_corrections_are_those_of_the_equation(layers: Corrected) -> None:
    """In plain torch: y^ of each layer is computed with the corrected biases before it."""
    module, graph = Layers().double().eval(), layers.model.graph()
    nodes = correctable(graph)
    acts = [node.name for node in graph.nodes if node.op_type == "Gelu"]
    assert len(nodes) == 3
    assert len(acts) == 2
    exact = quantized = layers.case.images.flatten(1).double()
    with torch.no_grad():
        for number, (layer, node) in enumerate(zip(module.layers, nodes, strict=True)):
            bias = torch.zeros(()) if layer.bias is None else layer.bias
            weight = layer.weight if node.op_type == "Gemm" else layer.weight.T
            weight = fake_quantized(layers.model, node.name, 1, weight.float().double())
            columns = weight.T if node.op_type == "Gemm" else weight
            y = layer(exact)
            y_hat = fake_quantized(layers.model, node.name, 0, quantized) @ columns + bias
            correction = (y_hat - y).mean(0)
            found = torch.tensor(graph.constants[node.input[2]])
            torch.testing.assert_close(found.double(), bias - correction, rtol=1e-4, atol=1e-5)
            if number < len(acts):
                exact = nn.functional.gelu(y)
                quantized = fake_quantized(layers.model, acts[number], 0, y_hat - correction)
                quantized = nn.functional.gelu(quantized)


def test_the_mean_error_is_gone(layers: Corrected) -> None:
    before, after = errors(layers.case, layers.plain), errors(layers.case, layers.model)
    assert max(float(error.abs().max()) for error in before.values()) > 0.01
    assert max(float(error.abs().max()) for error in after.values()) < 1e-5


def test_it_is_gone_in_transformers_too(family: Case) -> None:
    """The papers' protocol leaves outputs and biases in floating point, so nothing is left of it."""
    plain, model = (family.quantized(recipe("papers", methods=m), (4, 4)) for m in ([], METHOD))
    before, after = errors(family, plain), errors(family, model)
    assert before.keys() == after.keys()
    assert max(float(error.abs().max()) for error in before.values()) > 0.01
    assert max(float(error.abs().max()) for error in after.values()) < 2e-5
    assert sqnr(family.logits(model), family.floating()) > sqnr(family.logits(plain), family.floating())


# Layers without a bias, and biases that are quantized ---------------------------------------------


def test_a_layer_without_a_bias_gets_one(layers: Corrected) -> None:
    """And floating point stays: zeros are part of the rewrite, corrections are changes."""
    without = [node for node in correctable(layers.plain.graph()) if len(node.input) < 3]
    (name,) = (node.name for node in without)
    assert all(len(node.input) == 3 for node in correctable(layers.model.graph()))
    assert list(layers.model.rewrite.nodes) == [name]
    found = SimulatedModel(layers.model.rewritten, "cpu")(layers.case.images)
    torch.testing.assert_close(found, layers.case.floating(), rtol=1e-5, atol=1e-6)
    assert len(layers.model.changes.constants) == 3


def test_swin_s_reduction_gets_one() -> None:
    case = Case.of_family("swin")
    model = case.quantized(recipe("vanilla_once", methods=METHOD))
    (name,) = model.rewrite.nodes
    assert name.endswith("reduction/MatMul")
    found, wanted = SimulatedModel(model.rewritten, "cpu")(case.images), case.floating()
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("bits", [(8, 8), (4, 8)], ids=str)
def test_biases_that_the_recipe_quantizes_are_quantized_again(family: Case, bits: tuple[int, int]) -> None:
    model = family.quantized(recipe("vanilla", methods=METHOD), bits)
    plain = family.quantized(recipe("vanilla"), bits)
    simulation, graph = simulated(model, "cpu"), model.graph()
    nodes = {node.name: node for node in correctable(graph)}
    of_biases = {s: t for s, t in model.slots() if s.operand == "bias" and s.operator in nodes}
    assert of_biases.keys() >= {s for s, _ in plain.slots() if s.operand == "bias" and s.operator in nodes}
    for slot, tensor in of_biases.items():
        value = torch.tensor(graph.constants[nodes[slot.operator].input[2]])
        assert torch.equal(simulation.parameter(slot.operator, 2), value)
        assert tensor.quantizer == fit(slot, tensor, value), slot
        assert tensor.ready().bits == 8
    before, after = (_total(errors(family, each)) for each in (plain, model))
    assert after < before / 2


def _total(found: dict[str, Tensor]) -> float:
    return sum(float(error.square().mean()) for error in found.values())


# What stays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [recipe("papers", methods=METHOD), recipe("vanilla", methods=METHOD)])
def test_the_reference_and_its_metrics_stay_byte_for_byte(family: Case, chosen: Recipe) -> None:
    def metrics(reference: onnx.ModelProto) -> str:
        output = SimulatedModel(reference, "cpu")(family.images)
        return floating_metrics([(output, torch.arange(24) % 5)]).model_dump_json()

    graph, before = family.reference.SerializeToString(), metrics(family.reference)
    model = family.quantized(chosen)
    assert model.reference.SerializeToString() == graph
    assert metrics(model.reference) == before
    assert not torch.equal(SimulatedModel(model.edited, "cpu")(family.images), family.floating())
    weights = {
        name: value for name, value in constants(family.reference).items() if name in constants(model.edited)
    }
    biases = set(model.changes.constants)
    assert biases
    for name, value in weights.items():
        assert (constants(model.edited)[name].tobytes() == value.tobytes()) == (name not in biases), name


def test_a_recipe_without_linear_layers_is_refused(family: Case) -> None:
    nothing = {"select": {}, "quantize": False}
    softmax = {"select": {"role": "softmax"}, "quantize": True}
    with pytest.raises(UserError, match=r"^bias_correction: the recipe quantizes no linear layer"):
        family.quantized(recipe("vanilla", nothing, softmax, methods=METHOD))
