"""RepQ-ViT: the rewrite changes nothing in floating point, and one scale gives the codes of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES, SWIN, image_shape, made
from onnx import numpy_helper
from stretched import stretched
from tiny_methods import FLOATING_WEIGHTS, Case, recipe, repq, sqnr
from torch import Tensor, nn

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import FLOAT_KERNELS, INTEGER_KERNELS, product_kernels
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import LogSqrt2, Uniform
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.vocabulary.errors import UserError

NORM_READERS = ["qkv", "fc1"]
# Nothing but what the method re-parameterises, to see it alone.
ALONE: list[dict[str, Any]] = [
    {"select": {}, "quantize": False},
    {"select": {"role": NORM_READERS, "operand": "input"}, "quantize": True},
]
PRODUCTS = ("PPQBiasFusedMatMul", "Gemm", "MatMul", "Conv")


def swin_padded() -> nn.Module:
    """Windows of 3 x 3 do not divide 8 x 8 tokens: zeros stand between LayerNorm and qkv."""
    return made("swin_tiny_patch4_window7_224", **{**SWIN, "window_size": 3})


MODULES = {name: FAMILIES[name] for name in ("vit", "swin", "deit_distilled", "mobilevit")}
MODULES["swin_padded"] = swin_padded
GROUPS = {"vit": 4, "swin": 8, "deit_distilled": 4, "mobilevit": 6, "swin_padded": 8}


@pytest.fixture(scope="module", params=MODULES)
def named(request: pytest.FixtureRequest) -> tuple[str, Case]:
    return request.param, Case.of(MODULES[request.param](), image_shape(request.param))


@pytest.fixture
def case(named: tuple[str, Case]) -> Case:
    return named[1]


def fixed(model: QuantizedModel) -> dict[Slot, Uniform]:
    """The quantizers of what LayerNorms' readers read."""
    found = {slot: quantizer for slot, quantizer in model.fixed.items() if isinstance(quantizer, Uniform)}
    assert len(found) == len(model.fixed)
    return found


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def parameters(model: onnx.ModelProto, operator: str) -> list[np.ndarray]:
    """The inputs of an operator after its first."""
    (node,) = (node for node in model.graph.node if node.name == operator)
    return [constants(model)[name].astype(np.float64) for name in node.input[1:]]


def codes(model: QuantizedModel, slot: Slot, images: Tensor) -> np.ndarray:
    """What integer stands for each value that an operator reads, [..., channels]."""
    seen: list[Tensor] = []
    simulated(model, "cpu")(images, {slot.operator: lambda _, inputs, __: seen.append(inputs[0].clone())})
    quantizer = model.fixed[slot]
    assert isinstance(quantizer, Uniform)
    return (seen[0] / quantizer.scale + quantizer.zero_point).round().numpy()


# The rewrite --------------------------------------------------------------------------------------


def test_the_rewritten_graph_is_the_reference_in_floating_point(named: tuple[str, Case]) -> None:
    name, case = named
    before = case.reference.SerializeToString()
    model = case.quantized(repq())
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert len(fixed(model)) == GROUPS[name]
    assert model.rewrite
    assert not model.changes
    assert model.reference.SerializeToString() == before


def test_it_is_the_paper_s_equations(vit: Case) -> None:
    """One LayerNorm and its layer, in numpy; scales from minimum and maximum."""
    minmax = {"select": {"operand": ["input", "weight"]}, "observer": "minmax"}
    model = vit.quantized(repq(minmax, log_sqrt2=False))
    gamma, beta = parameters(vit.reference, "blocks.0.norm1")
    weight, bias = parameters(vit.reference, "blocks.0.qkv")
    seen: list[Tensor] = []
    floating = SimulatedModel(vit.reference, "cpu")
    floating(vit.images, {"blocks.0.norm1": lambda _, __, outputs: seen.append(outputs[0])})
    x = seen[0].flatten(0, -2).double().numpy()
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    s = (high - low) / 255
    z = np.clip(np.rint(-low / s), 0, 255)
    s_mean, z_mean = s.mean(), np.rint(z.mean())
    r1, shift = s / s_mean, s * (z - z_mean)
    found_gamma, found_beta = parameters(model.rewritten, "blocks.0.norm1")
    found_weight, found_bias = parameters(model.rewritten, "blocks.0.qkv")
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found_gamma, gamma / r1, **close)
    np.testing.assert_allclose(found_beta, (beta + shift) / r1, **close)
    np.testing.assert_allclose(found_weight, weight * r1[:, None], **close)
    np.testing.assert_allclose(found_bias, bias - shift @ weight, **close)
    quantizer = fixed(model)["blocks.0.qkv", "input", 0]  # type: ignore[index]
    np.testing.assert_allclose(quantizer.scale, s_mean, **close)
    assert quantizer.zero_point == z_mean
    assert quantizer.axis is None
    # The tensor's own codes in its new form are those per channel in the old one.
    old = np.clip(np.rint(x / s) + z, 0, 255)
    new = np.clip(np.rint((x + shift) / r1 / s_mean) + z_mean, 0, 255)
    assert (old != new).mean() < 1e-4


def test_zeros_that_are_padded_stay_zeros() -> None:
    """So there is no shift: scales of qkv are symmetric; fc1, before which nothing is padded, has one."""
    model = Case.of(swin_padded(), (3, 32, 32)).quantized(repq())
    quantizers = fixed(model)
    assert {q.symmetric for slot, q in quantizers.items() if slot.operator.endswith("qkv")} == {True}
    assert False in {q.symmetric for slot, q in quantizers.items() if slot.operator.endswith("fc1")}


def test_a_pad_of_no_width_is_none() -> None:
    """Swin has one at each window attention even where the windows divide the image."""
    case = Case.of_family("swin")
    assert "Pad" in {node.op_type for node in case.reference.graph.node}
    quantizers = fixed(case.quantized(repq()))
    assert False in {q.symmetric for slot, q in quantizers.items() if slot.operator.endswith("qkv")}


# Per channel, and what stands for it --------------------------------------------------------------


def test_one_scale_gives_the_codes_of_one_for_each_channel(case: Case) -> None:
    channels = case.quantized(repq(*ALONE, layernorm="per-channel", log_sqrt2=False))
    one = case.quantized(repq(*ALONE, layernorm="reparameterized", log_sqrt2=False))
    assert all(quantizer.axis is not None for quantizer in fixed(channels).values())
    assert all(quantizer.axis is None for quantizer in fixed(one).values())
    assert not channels.rewrite
    for slot in fixed(channels):
        found, wanted = codes(one, slot, case.images), codes(channels, slot, case.images)
        assert np.abs(found - wanted).max() <= 1, slot
        assert (found != wanted).mean() < 5e-3, slot  # ties, more or fewer by processor


def test_logits_are_equal_within_a_step(case: Case) -> None:
    """With every activation quantized and weights in floating point: a tie may fall the other way."""
    found, wanted = (
        case.logits(case.quantized(repq(FLOATING_WEIGHTS, layernorm=layernorm, log_sqrt2=False)))
        for layernorm in ("reparameterized", "per-channel")
    )
    step = (wanted.max() - wanted.min()) / 255
    assert (found - wanted).abs().max() <= step


def test_with_quantized_weights_a_layer_differs_by_its_weights_steps(vit: Case) -> None:
    """The codes of its input are equal; its weights lie on other grids, each at most half a step away."""
    outputs, bounds = [], []
    for layernorm in ("reparameterized", "per-channel"):
        model = vit.quantized(
            repq(*ALONE, {"select": {"role": "qkv", "operand": "weight"}, "quantize": True,
                          "observer": "minmax"}, layernorm=layernorm, log_sqrt2=False)
        )  # fmt: skip
        seen: list[tuple[Tensor, Tensor]] = []
        simulated(model, "cpu")(
            vit.images, {"blocks.0.qkv": lambda _, i, o, seen=seen: seen.append((i[0].clone(), o[0].clone()))}
        )
        quantizers = {slot: tensor.quantizer for slot, tensor in model.slots()}
        weight = quantizers["blocks.0.qkv", "weight", 1]  # type: ignore[index]
        assert weight is not None
        ((read, output),) = seen
        outputs.append(output)
        bounds.append(read.abs().sum(-1, keepdim=True) * weight.scale / 2)
    difference = (outputs[0] - outputs[1]).abs()
    assert (difference <= 1.01 * (bounds[0] + bounds[1])).all()
    assert difference.max() > 0


# What it is for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_stretched_channels_cost_a_plain_recipe_much_and_this_one_nothing(family: str) -> None:
    plain = Case.of_family(family)
    hard = Case.of(stretched(FAMILIES[family]()), image_shape(family))
    assert sqnr(hard.floating(), plain.floating()) > 100
    bits = (6, 6)
    papers, method = recipe("papers"), repq()
    assert plain.sqnr(papers, bits) - hard.sqnr(papers, bits) > 8
    assert abs(plain.sqnr(method, bits) - hard.sqnr(method, bits)) < 3
    assert hard.sqnr(method, bits) > hard.sqnr(papers, bits) + 8


# Softmax, and refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_softmax_s_powers_have_a_switch(vit: Case, on: bool) -> None:
    model = vit.quantized(repq(log_sqrt2=on))
    kinds = {
        (slot.operator.rpartition(".")[2], slot.position): type(tensor.quantizer)
        for slot, tensor in model.slots()
        if not tensor.is_parameter
    }
    assert kinds.pop(("attn_context", 0)) is (LogSqrt2 if on else Uniform)
    assert set(kinds.values()) == {Uniform}


def test_per_tensor_is_the_plain_recipe(vit: Case) -> None:
    plain = recipe("repq_vit", methods=[])
    found = vit.logits(vit.quantized(repq(layernorm="per-tensor", log_sqrt2=False)))
    assert torch.equal(found, vit.logits(vit.quantized(plain)))


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rule = {"select": {"role": NORM_READERS, "operand": "input"}, "quantize": False}
    with pytest.raises(UserError, match=r"^repq_vit: no LayerNorm .* per tensor$"):
        vit.quantized(repq(rule))


def test_a_layernorm_that_is_an_output_stays_as_it_is() -> None:
    """Of a model without a head the last LayerNorm is the output: nothing could undo a scale."""
    case = Case.of_family("vit_features")
    rule = {"select": {"role": "head"}, "optional": True, "quantize": False}
    model = case.quantized(repq(rule))
    changed = [value.tobytes() for value in parameters(model.rewritten, "norm")]
    assert changed == [value.tobytes() for value in parameters(case.reference, "norm")]
    assert len(fixed(model)) == 4


class Shared(nn.Module):
    """Two LayerNorms of one gamma and beta, two layers of one weight and bias; activations [images, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.last = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :8]
        x = self.layer(self.norm(x))
        return self.last(self.layer(self.norm(x * x)))


def test_shared_constants_and_two_dimensions() -> None:
    """Each use of a constant gets one of its own; a Gemm has its weight transposed."""
    case = Case.of(Shared().eval(), (1, 4, 4))
    assert "Gemm" in {node.op_type for node in case.reference.graph.node}
    everything = {"select": {}, "symmetry": "asymmetric", "codes": "unsigned", "observer": "minmax"}
    biases = {"select": {"operand": "bias"}, "quantize": False}
    model = case.quantized(
        recipe("vanilla", everything, biases, methods=[{"name": "repq_vit", "log_sqrt2": False}])
    )
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert len(fixed(model)) == 2
    assert sqnr(case.logits(model), wanted) > 25


# Deployed -----------------------------------------------------------------------------------------


def test_fast_runs_it_on_product_kernels(case: Case, tmp_path: Path) -> None:
    model = case.quantized(repq(log_sqrt2=False))
    deployed = deploy(model.edited, model.quantized, "fast")
    products = {i.operator.name for i in model.quantized if i.operator.type in PRODUCTS}
    runs = {name: place.runs for name, place in deployed.placements.items()}
    convolutions = {i.operator.name for i in model.quantized if i.operator.type == "Conv"}
    assert {runs[name] for name in products - convolutions} == {"integer"}
    assert not deployed.migrations  # what scales per channel would have cost is in the parameters already
    counts = product_kernels(deployed.model, tmp_path, quantized=True)
    integer = sum(counts.get(kernel, 0) for kernel in INTEGER_KERNELS)
    assert integer == sum(runs[name] == "integer" for name in products)
    in_graph = sum(node.op_type in PRODUCTS for node in case.reference.graph.node)
    assert sum(counts.get(kernel, 0) for kernel in FLOAT_KERNELS) == in_graph - integer


def test_fast_leaves_the_powers_in_floating_point(vit: Case) -> None:
    model = vit.quantized(repq(log_sqrt2=True))
    placements = deploy(model.edited, model.quantized, "fast").placements
    floating = sorted(name for name, place in placements.items() if place.runs == "float")
    assert floating == ["blocks.0.attn_context", "blocks.1.attn_context"]


def test_the_paper_s_asymmetric_weights_are_one_rule_away(vit: Case) -> None:
    """Then no integer kernel takes them, for each output channel has a zero point of its own."""
    rule = {"select": {"operand": "weight"}, "symmetry": "asymmetric"}
    model = vit.quantized(repq(rule, log_sqrt2=False))
    weights = [tensor.ready() for _, tensor in model.slots() if tensor.operand == "weight"]
    assert all(isinstance(weight, Uniform) and not weight.symmetric for weight in weights)
    placements = deploy(model.edited, model.quantized, "fast").placements
    integer = {name.rpartition(".")[2] for name, place in placements.items() if place.runs == "integer"}
    assert integer == {"attn_scores", "attn_context"}
