"""NoisyQuant: a fixed noise changes nothing in floating point, and a quantized layer loses it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_methods import Case, recipe, sqnr

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.methods.noisyquant import NoisyQuant, NoisyQuantSettings
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

LAYERS = {"vit": 4 * 2 + 1, "swin": 4 * 4 + 1}  # qkv, proj, fc1, fc2 of each block, and the head


def noisy(*rules: dict[str, Any], **settings: Any) -> Recipe:
    return recipe("noisyquant", *rules, methods=[{"name": "noisyquant", **settings}])


@pytest.fixture(scope="module", params=["vit", "swin"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def case(family: str) -> Case:
    return Case.of_family(family)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def parameters(model: onnx.ModelProto, operator: str) -> list[np.ndarray]:
    """The constants of an operator, float64."""
    (node,) = (node for node in model.graph.node if node.name == operator)
    return [constants(model)[n].astype(np.float64) for n in node.input if n in constants(model)]


def noise_of(model: QuantizedModel, case: Case, norm: str) -> np.ndarray:
    """What beta of a LayerNorm took on."""
    return parameters(model.rewritten, norm)[1] - parameters(case.reference, norm)[1]


# Invariance ---------------------------------------------------------------------------------------


def test_the_rewritten_graph_is_the_reference_in_floating_point(case: Case, family: str) -> None:
    model = case.quantized(noisy(), (4, 4))
    wanted, found = case.floating(), SimulatedModel(model.rewritten, "cpu")(case.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert len(model.fixed) == LAYERS[family]
    assert model.rewrite


def test_roles_stay_what_they_were(case: Case) -> None:
    model = case.quantized(noisy(), (4, 4))
    after = {o.name: (o.role, o.block) for o in model.operators if not o.name.endswith("/shift")}
    assert after == {o.name: (o.role, o.block) for o in case.operators}
    assert any(o.name.endswith("fc2/shift") for o in model.operators)


def test_with_all_off_it_is_the_plain_recipe(vit: Case) -> None:
    found = vit.quantized(noisy(noise=False, mean=False, clip=False), (4, 4))
    plain = vit.quantized(recipe("noisyquant", methods=[]), (4, 4))
    assert torch.equal(vit.logits(found), vit.logits(plain))
    assert not found.rewrite
    assert not found.changes


# The equation -------------------------------------------------------------------------------------


def test_a_layer_is_the_paper_s_equation(vit: Case) -> None:
    """y = Q(x + N) W^ + b - N W^ in numpy, with x from the floating model and the block's first layer."""
    model = vit.quantized(noisy(), (4, 4))
    quantizers = {slot: t.ready() for slot, t in model.slots()}
    noise = noise_of(model, vit, "blocks.0.norm1")
    weight, bias = parameters(vit.reference, "blocks.0.qkv")
    seen: list[torch.Tensor] = []
    simulated(model, "cpu")(vit.images, {"blocks.0.qkv": lambda _, __, outputs: seen.append(outputs[0])})
    norm = parameters(vit.reference, "blocks.0.norm1")
    stream: list[torch.Tensor] = []
    simulated(model, "cpu")(vit.images, {"blocks.0.norm1": lambda _, inputs, __: stream.append(inputs[0])})
    x = torch.nn.functional.layer_norm(
        stream[0].double(), (stream[0].shape[-1],), *(torch.from_numpy(p) for p in norm), eps=_eps(vit)
    ).numpy()
    quantizer = quantizers["blocks.0.qkv", "input", 0]  # type: ignore[index]
    assert isinstance(quantizer, Uniform)
    scale, low, high = (float(v) for v in (quantizer.scale, quantizer.lowest, quantizer.highest))
    rounded = np.clip(np.rint((x + noise) / scale), low, high) * scale
    of_weight = quantizers["blocks.0.qkv", "weight", 1]  # type: ignore[index]
    on_grid = of_weight(torch.tensor(weight).float()).double().numpy()
    wanted = rounded @ on_grid + bias - noise @ on_grid
    off = np.abs(seen[0].double().numpy() - wanted)
    assert np.mean(off > 1e-4 * np.abs(wanted).max()) < 1e-2  # a value on a tie may fall the other way
    assert noise.any()


def _eps(case: Case) -> float:
    (node,) = (node for node in case.reference.graph.node if node.name == "blocks.0.norm1")
    return float(next(a.f for a in node.attribute if a.name == "epsilon"))


def test_the_noise_is_uniform_around_its_mean(vit: Case) -> None:
    """Not normal, and as wide on both sides; one value a channel, the same for one seed alone."""
    noises = []
    for seed in (0, 0, 1):
        chosen = noisy(mean=False, clip=False)
        model = quantize(vit.reference, vit.operators, chosen, (4, 4), vit.images.split(8), "cpu", seed)
        found = {n: noise_of(model, vit, n) for n in ("blocks.0.norm1", "blocks.0.norm2", "norm")}
        noises.append(np.concatenate([v / np.abs(v).max() for v in found.values() if v.any()]))
    assert np.array_equal(noises[0], noises[1])
    assert noises[0].shape != noises[2].shape or not np.array_equal(noises[0], noises[2])
    drawn = noises[0]
    assert len(drawn) >= 32
    assert abs(drawn.mean()) < 0.25
    assert 0.45 < drawn.std() < 0.7  # of U(-1, 1): 0.577; of a normal one with its largest at 1: about 0.4
    assert np.abs(drawn).max() == 1


# The search ---------------------------------------------------------------------------------------


def searched(x: torch.Tensor, quantizer: Uniform, **settings: bool) -> tuple[Uniform, torch.Tensor, Any]:
    method = NoisyQuant(NoisyQuantSettings(**settings))
    u = torch.linspace(-1, 1, x.shape[1], dtype=torch.float64)

    def error(read: torch.Tensor) -> float:
        return float((read - x).double().square().sum())

    return *method._searched(quantizer, u, x, error), error


def uniform(scale: float, bits: int = 4) -> Uniform:
    top = 1 << (bits - 1)
    return Uniform(torch.tensor(scale), torch.tensor(0.0), bits, -top, top - 1, None)


def test_where_nothing_is_better_the_calibrated_scale_is_kept() -> None:
    """Values that all lie on the grid: no clipping, no mean and no noise is best."""
    quantizer = uniform(0.5)
    x = 0.5 * torch.randint(-8, 8, (64, 6), generator=torch.Generator().manual_seed(0)).float()
    found, noise, _ = searched(x, quantizer)
    assert found is quantizer
    assert not noise.any()


def test_values_amid_a_bin_gain_from_noise_as_the_theorem_says() -> None:
    """Values a quarter of a step from the bin's edge: each rounds to one side without a noise."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randint(-6, 6, (256, 32), generator=generator).float() + 0.24
    quantizer = uniform(0.5)
    found, noise, error = searched(x, quantizer, mean=False, clip=False)
    assert found is quantizer
    width = noise.abs().max()
    assert 0 < width <= 2 * 0.5 + 1e-6
    assert error(quantizer(x + noise.float()) - noise.float()) < error(quantizer(x))


def test_outliers_are_clipped() -> None:
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 40.0
    found, _, _ = searched(x, uniform(40 / 7), noise=False, mean=False)
    assert found.scale < 40 / 7 / 2


def layer_errors(case: Case, model: QuantizedModel) -> dict[str, float]:
    """Squared error of each layer's output where it alone is quantized, on all calibration images."""
    floating, simulation = SimulatedModel(model.rewritten, "cpu"), simulated(model, "cpu")
    found: dict[str, float] = {}

    def add(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        off = simulation.quantized_output(name, inputs) - outputs[0]
        found[name] = float(off.double().square().sum())

    layers = {slot.operator for slot in model.fixed} or {i.operator.name for i in model.quantized}
    floating(case.images, dict.fromkeys(layers, add))
    return found


@pytest.mark.parametrize("parts", [["noise"], ["mean"], ["clip"], ["noise", "mean", "clip"]], ids="+".join)
def test_no_layer_is_worse_than_without(vit: Case, parts: list[str]) -> None:
    """Each finds the least of candidates among which the calibrated quantizer is.

    That one was observed in floating point, the plain recipe's beside quantized weights: nearly the same.
    """
    off = {"noise": False, "mean": False, "clip": False}
    before = layer_errors(vit, vit.quantized(noisy(**off), (4, 4)))
    after = layer_errors(vit, vit.quantized(noisy(**off | dict.fromkeys(parts, True)), (4, 4)))
    assert len(after) == LAYERS["vit"]
    for name, error in after.items():
        assert error <= before[name] * 1.05, name
    assert sum(after.values()) < 0.99 * sum(before[name] for name in after)


# With others --------------------------------------------------------------------------------------


def test_after_repq_vit_it_takes_that_one_s_quantizers(vit: Case) -> None:
    methods = [{"name": "repq_vit", "log_sqrt2": False}, {"name": "noisyquant", "clip": False}]
    model = vit.quantized(recipe("repq_vit", methods=methods), (4, 4))
    alone = vit.quantized(recipe("repq_vit", methods=methods[:1]), (4, 4))
    for slot, quantizer in alone.fixed.items():
        assert model.fixed[slot] == quantizer
    wanted, found = vit.floating(), SimulatedModel(model.rewritten, "cpu")(vit.images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert sqnr(vit.logits(model), wanted) > sqnr(vit.logits(alone), wanted) - 1


def test_it_is_deployed_on_integer_kernels(vit: Case) -> None:
    model = vit.quantized(noisy(), (8, 8))
    deployed = deploy(model.edited, model.quantized, "fast")
    plain = vit.quantized(recipe("papers"), (8, 8))
    base = deploy(plain.edited, plain.quantized, "fast")
    integer = [{n for n, p in d.placements.items() if p.runs == "integer"} for d in (deployed, base)]
    assert integer[0] == integer[1]
    assert not deployed.kept


def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(vit: Case) -> None:
    rule = {"select": {"operand": "input"}, "quantize": False}
    with pytest.raises(UserError, match=r"^noisyquant: the recipe quantizes the input of no linear layer"):
        vit.quantized(noisy(rule))
