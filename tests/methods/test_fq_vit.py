"""FQ-ViT: factors are powers of two of least error, softmax has 4 bits of powers of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, image_shape
from tiny_methods import Case, recipe, sqnr

from ptq2themoon.deploy.compare import compare
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.deploy.integer_operators import FAITHFUL, FAST
from ptq2themoon.graph.editing.onnx_run import session
from ptq2themoon.quantize.blocks import run_segments, segments
from ptq2themoon.quantize.integer_arithmetic import IntegerLayerNorm
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import protocol
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.quantizers.log2 import Log2
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import Slot
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

FLOATING = {"integer_layernorm": False, "integer_softmax": False}
OFF = {"factors": False, "softmax": False, **FLOATING}


def fq(*rules: dict[str, Any], before: Any = (), after: Any = (), **settings: Any) -> Recipe:
    return recipe("fq_vit", *rules, methods=[*before, {"name": "fq_vit", **settings}, *after])


@pytest.fixture(scope="module", params=["vit", "swin"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of_family(request.param)


def inputs_of_norms(model: QuantizedModel) -> dict[Slot, Uniform]:
    types = {item.operator.name: item.operator.type for item in model.quantized}
    return {
        slot: q
        for slot, t in model.slots()
        if types[slot.operator] == "LayerNormalization" and slot.operand == "input"
        if isinstance(q := t.ready(), Uniform)
    }


# Factors ------------------------------------------------------------------------------------------


def test_scales_are_one_scale_times_powers_of_two(case: Case) -> None:
    plain, model = (inputs_of_norms(case.quantized(fq(softmax=False, factors=on))) for on in (False, True))
    assert plain.keys() == model.keys()
    assert len(model) >= 5
    for slot, quantizer in model.items():
        exponents = torch.log2(quantizer.scale / quantizer.scale.min())
        assert torch.equal(exponents, exponents.round()), slot
        assert exponents.max() <= 3
        # Calibrated beside quantized weights, the plain one is nearly that of the largest factor.
        assert (torch.log2(plain[slot].scale / quantizer.scale) - 3).max() < 0.01
        assert quantizer.axis is not None
        assert (quantizer.zero_point == quantizer.zero_point[0]).all()
        assert (quantizer.zero_point - plain[slot].zero_point).abs().max() <= 1


@pytest.mark.parametrize("bits", [4, 8])
def test_factors_are_those_of_least_error(vit: Case, bits: int) -> None:
    """In numpy, of one LayerNorm on all images."""
    model = vit.quantized(fq(softmax=False), (8, bits))
    seen: list[torch.Tensor] = []
    SimulatedModel(vit.reference, "cpu")(
        vit.images, {"blocks.1.norm2": lambda _, inputs, __: seen.append(inputs[0].clone())}
    )
    x = seen[0].flatten(0, -2).double().numpy()
    low, high, top = min(x.min(), 0), max(x.max(), 0), 2**bits - 1
    s = (high - low) / top
    z = np.clip(np.rint(-low / s), 0, top)
    errors = []
    for k in range(4):
        scale = s / 8 * 2**k
        errors.append(np.square((np.clip(np.rint(x / scale) + z, 0, top) - z) * scale - x).sum(0))
    quantizer = inputs_of_norms(model)[Slot("blocks.1.norm2", "input", 0)]
    np.testing.assert_allclose(quantizer.scale, s / 8 * 2.0 ** np.argmin(errors, 0), rtol=1e-5)
    assert (quantizer.zero_point == z).all()


def uneven(module: torch.nn.Module) -> torch.nn.Module:
    """Two channels of the residual stream are far wider than all others, as in trained models."""
    with torch.no_grad():
        module.patch_embed.proj.weight[:2] *= 12  # type: ignore[union-attr]
    return module


def test_factors_gain_where_channels_differ() -> None:
    case = Case.of(uneven(FAMILIES["vit"]()), image_shape("vit"))
    only: list[dict[str, Any]] = [
        {"select": {}, "quantize": False},
        {"select": {"role": ["norm1", "norm2", "norm"], "operand": "input"}, "quantize": True},
    ]
    plain = case.sqnr(fq(*only, **OFF), (8, 5))
    assert case.sqnr(fq(*only, softmax=False), (8, 5)) > plain + 3


def test_the_largest_factor_is_a_setting(vit: Case) -> None:
    model = inputs_of_norms(vit.quantized(fq(largest=1)))
    found = {float(e) for q in model.values() for e in torch.log2(q.scale / q.scale.min())}
    assert found == {0.0, 1.0}


# Softmax ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=str)
def test_softmax_has_four_bits_of_powers_of_two(case: Case, bits: tuple[int, int]) -> None:
    model = case.quantized(fq(), bits)
    found = [
        t.ready()
        for slot, t in model.slots()
        if slot.operator.endswith("attn_context") and (slot.operand, slot.position) == ("input", 0)
    ]
    assert found
    for quantizer in found:
        assert isinstance(quantizer, Log2)
        assert (quantizer.bits, quantizer.scale) == (4, 1)


# Integers -----------------------------------------------------------------------------------------


def arithmetic(model: QuantizedModel) -> dict[str, str]:
    return {i.operator.name: i.arithmetic.kind for i in model.quantized if i.arithmetic is not None}


@pytest.mark.parametrize("layernorm", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_each_operator_computes_on_integers_where_its_setting_says_so(
    vit: Case, layernorm: bool, softmax: bool
) -> None:
    model = vit.quantized(fq(integer_layernorm=layernorm, integer_softmax=softmax))
    wanted = {
        "LayerNormalization": "integer_layernorm" if layernorm else None,
        "Softmax": "integer_softmax" if softmax else None,
    }
    found = arithmetic(model)
    for item in model.quantized:
        assert found.get(item.operator.name) == wanted.get(item.operator.type), item.operator


def test_integers_cost_accuracy_and_leave_the_rest_alone(vit: Case) -> None:
    plain, model = vit.quantized(fq(**FLOATING)), vit.quantized(fq())
    assert [(s, t.ready()) for s, t in plain.slots()] == [(s, t.ready()) for s, t in model.slots()]
    found, wanted = vit.logits(model), vit.logits(plain)
    assert not torch.equal(found, wanted)
    assert sqnr(found, wanted) > 15


def test_a_softmax_gives_powers_of_two_and_a_layernorm_codes_of_its_reader(vit: Case) -> None:
    model = vit.quantized(fq())
    seen: dict[str, torch.Tensor] = {}
    hook = lambda name, _, outputs: seen.update({name: outputs[0].clone()})  # noqa: E731
    SimulatedModel(model.edited, "cpu", model.quantized)(
        vit.images[:4], dict.fromkeys(["blocks.0.softmax", "blocks.0.norm1"], hook)
    )
    softmax, norm = seen["blocks.0.softmax"], seen["blocks.0.norm1"]
    codes = -torch.log2(softmax[softmax > 0])
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert codes.max() <= 15
    quantizers = {slot: tensor.ready() for slot, tensor in model.slots()}
    reader = quantizers[Slot("blocks.0.qkv", "input", 0)]
    codes = norm / reader.scale
    assert (codes - codes.round()).abs().max() < 1e-4
    assert not torch.equal(norm, torch.zeros_like(norm))


def test_with_no_quantizer_in_force_nothing_computes_on_integers(vit: Case) -> None:
    model = vit.quantized(fq())
    simulation = SimulatedModel(model.edited, "cpu", model.quantized)
    with simulation.only(()):
        assert torch.equal(simulation(vit.images), vit.floating())


def test_a_layernorm_keeps_the_scale_of_its_reader_whatever_comes_later(vit: Case) -> None:
    model = vit.quantized(fq(after=[{"name": "power_of_two", "rounding": "up"}]))
    quantizers = {slot: tensor.ready() for slot, tensor in model.slots()}
    for item in model.quantized:
        if item.operator.name == "blocks.1.norm2":
            assert isinstance(item.arithmetic, IntegerLayerNorm)
            assert item.arithmetic.output_scale == quantizers[Slot("blocks.1.fc1", "input", 0)].scale


def test_what_is_not_read_with_one_scale_stays_in_floating_point(vit: Case) -> None:
    rule = {"select": {"role": "qkv", "operand": "input"}, "granularity": "per-channel"}
    found = arithmetic(vit.quantized(fq(rule)))
    assert "blocks.0.norm1" not in found
    assert found["blocks.0.norm2"] == "integer_layernorm"


def test_training_has_the_same_values_and_a_gradient(vit: Case) -> None:
    model = vit.quantized(fq())
    simulation = SimulatedModel(model.edited, "cpu", model.quantized)
    found = segments(simulation, model.operators)
    images = vit.images[:4].clone().requires_grad_()
    logits = run_segments(found, {simulation.input_name: images})[simulation.outputs[0]]
    assert torch.equal(logits.detach(), simulation(vit.images[:4]))
    logits.square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0


def test_ppqs_executor_does_not_have_it(vit: Case) -> None:
    model = vit.quantized(fq(softmax=False, integer_softmax=False))
    with pytest.raises(UserError, match=r"^PPQ's executor has no integer_layernorm; use the program$"):
        SimulatedModel(model.edited, "cpu", model.quantized, "ppq")


# As a whole ---------------------------------------------------------------------------------------


def test_all_operators_are_quantized_and_nothing_is_rewritten(case: Case) -> None:
    model = case.quantized(fq())
    assert protocol(model.quantized) == "all-operators"
    assert {"Softmax", "LayerNormalization", "Gelu", "Add"} <= {i.operator.type for i in model.quantized}
    assert not model.rewrite
    assert not model.changes
    assert sqnr(case.logits(model), case.floating()) > 10


def test_with_all_off_it_is_its_base_recipe(vit: Case) -> None:
    found = vit.logits(vit.quantized(fq(**OFF), (6, 6)))
    assert torch.equal(found, vit.logits(vit.quantized(recipe("fq_vit", methods=[]), (6, 6))))


def test_deployed_the_linear_layers_run_on_integer_kernels(vit: Case) -> None:
    model = vit.quantized(fq())
    placements = deploy(model.edited, model.quantized, "fast").placements
    for name in ("blocks.0.qkv", "blocks.0.proj", "blocks.1.fc1", "blocks.1.fc2", "blocks.0.attn_scores"):
        assert placements[name].runs == "integer", name
    assert placements["blocks.0.attn_context"].runs == "float"
    for name in ("blocks.0.norm1", "blocks.0.softmax"):
        assert placements[name] == ("float", FAST)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=str)
def test_a_faithful_model_has_the_integers_of_the_simulation(case: Case, bits: tuple[int, int]) -> None:
    model = case.quantized(fq(), bits)
    deployed = deploy(model.edited, model.quantized, "faithful")
    assert deployed.placements["blocks.0.softmax"] == ("float", FAITHFUL)
    running = session(deployed.model, quantized=True)
    (found,) = running.run(None, {running.get_inputs()[0].name: case.images.numpy()})
    assert sqnr(torch.from_numpy(found), case.logits(model)) > 40
    differences = compare(model.edited, model.quantized, simulated(model, "cpu"), case.images[:8])
    on_integers = arithmetic(model)
    assert not any(d.differ for d in differences if d.operator in on_integers)
    assert not any(d.departs for d in differences)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["repq_vit", "adalog"])
@pytest.mark.parametrize("first", [True, False])
def test_two_kinds_for_softmax_are_refused(vit: Case, other: str, first: bool) -> None:
    call = [{"name": "repq_vit", "layernorm": "per-tensor"} if other == "repq_vit" else {"name": "adalog"}]
    methods: dict[str, Any] = {"before": call} if first else {"after": call}
    with pytest.raises(UserError, match=r" both decide the quantizer of softmax's output; say ") as error:
        vit.quantized(fq(**methods))
    assert "\n" not in str(error.value)


def test_another_kind_for_softmax_by_a_rule_is_refused(vit: Case) -> None:
    rule = {"select": {"role": "attn_context", "operand": "input", "position": 0}, "kind": "log_sqrt2"}
    with pytest.raises(UserError, match=r"^fq_vit: what \S+ reads of softmax has kind log_sqrt2 from a rule"):
        vit.quantized(fq(rule))


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rule = {"select": {"role": ["norm", "norm1", "norm2", "attn_context"]}, "quantize": False}
    with pytest.raises(UserError, match=r"^fq_vit: the recipe quantizes no input of a LayerNorm"):
        vit.quantized(fq(rule))
