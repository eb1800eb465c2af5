"""PSAQ-ViT: the entropy by its formulas, a gradient that is true, calibration that reads no real image."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_info
import torch
from numpy.typing import NDArray
from tiny_methods import Case, Unread, recipe
from torch import Tensor, nn

from ptq2themoon.methods import made
from ptq2themoon.methods.psaq_vit import PSAQViTSettings
from ptq2themoon.pipeline import calibrated, prepared, quantize
from ptq2themoon.quantize import patch_entropy, synthesis
from ptq2themoon.quantize.image_loss import Loss, OneHot, Weights, attended
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.patch_entropy import differential_entropy, patch_similarity, total_variation
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.synthesis import descend, pixel_range
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 8)
WEIGHTS = Weights(entropy=1.0, output=1.0, variation=0.05, bandwidth=0.05, points=10)


def psaq(**settings: Any) -> Recipe:
    method = {"name": "psaq_vit", "iterations": 4, "images": 6, **settings}
    return recipe("papers", methods=[method])


def on_unread(case: Case, asked: Recipe, seed: int = 0, info: ModelInfo | None = None) -> QuantizedModel:
    return quantize(case.reference, case.operators, asked, BITS, Unread(), "cpu", seed, info=info)


def info_of(case: Case, classes: int | None = 5) -> ModelInfo:
    return ModelInfo(**tiny_info.model_info(case.images.shape[1:], classes))


def images_of(case: Case, asked: Recipe, seed: int = 0, info: ModelInfo | None = None) -> Tensor:
    tools = Tools(asked, BITS, Unread(), seed, "cpu", info=info)
    ready = prepared(case.reference, case.operators, tools)
    return torch.cat(list(ready.tools.batches))


def loss_of(case: Case, images: int, weights: Weights = WEIGHTS) -> Loss:
    outputs = attended(case.reference, case.operators)
    judge = OneHot(torch.arange(images) % 5)
    return Loss(SimulatedModel(case.reference, "cpu"), outputs, weights, judge, 2700.0)


def scales(model: QuantizedModel) -> list[Tensor]:
    return [tensor.ready().scale for _, tensor in model.slots()]


# The entropy, against numpy ---------------------------------------------------------------------------


def reference(output: NDArray[np.float64], prefix: int, bandwidth: float, points: int) -> float:
    """H of one set of tokens, [heads, tokens, channels], pair by pair."""
    patches = output.mean(0)[prefix:]
    similar = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a in patches for b in patches
    ]  # fmt: skip
    grid = np.linspace(min(similar), max(similar), points)

    def density(at: float) -> float:
        kernels = [math.exp(-(((at - value) / bandwidth) ** 2) / 2) for value in similar]
        return sum(kernels) / (len(similar) * bandwidth * math.sqrt(2 * math.pi)) + 1e-4

    under = [-density(at) * math.log(density(at)) for at in grid]
    return sum((a + b) / 2 for a, b in pairwise(under)) * (grid[1] - grid[0])


@pytest.mark.parametrize(("prefix", "windows"), [(1, 1), (0, 4)])
def test_the_entropy_is_that_of_the_paper(prefix: int, windows: int) -> None:
    heads, tokens, channels = 3, 7, 5
    output = np.random.default_rng(0).standard_normal((2 * windows, heads, tokens, channels))
    similar = patch_similarity(torch.from_numpy(output), 2, heads, prefix)
    assert similar.shape == (2 * windows, (tokens - prefix) ** 2)
    found = differential_entropy(similar, 0.05, 12)
    wanted = [reference(each, prefix, 0.05, 12) for each in output]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


def test_heads_beside_images_are_told_apart() -> None:
    output = torch.randn((2, 4, 3, 7, 5), dtype=torch.float64)  # images, windows, heads
    flat = output.reshape(2 * 4 * 3, 7, 5)
    assert torch.equal(patch_similarity(output, 2, 3, 0), patch_similarity(flat, 2, 3, 0))
    with pytest.raises(ValueError, match="hold no whole sets of tokens of 5 images"):
        patch_similarity(output, 5, 3, 0)


def test_foreground_and_background_have_more_entropy_than_patches_that_are_all_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn((1, 1, 16, 8), generator=generator)
    alike = torch.ones(8) + noise
    two = torch.where(torch.arange(16)[:, None] < 8, torch.ones(8), -torch.ones(8)) + 3 * noise
    entropies = [
        float(differential_entropy(patch_similarity(each, 1, 1, 0), 0.05, 50)) for each in (alike, two)
    ]
    assert entropies[1] > entropies[0]


def test_total_variation_is_the_sum_of_four_norms() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6))
    steps = [x[..., :-1] - x[..., 1:], x[:, :, :-1] - x[:, :, 1:]]
    steps += [x[:, :, 1:, :-1] - x[:, :, :-1, 1:], x[:, :, :-1, :-1] - x[:, :, 1:, 1:]]
    wanted = sum(math.sqrt((step**2).sum()) for step in steps)
    assert float(total_variation(torch.from_numpy(x))) == pytest.approx(wanted, rel=1e-12)


# The loss and its gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_gradient_is_that_of_finite_differences(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of_family(family)
    loss = loss_of(case, 2)
    loss.program.parameters = {key: value.double() for key, value in loss.program.parameters.items()}
    images = case.images[:2].double()
    grids: list[Tensor] = []
    plain = patch_entropy.grid_of

    def kept(values: Tensor, points: int) -> Tensor:
        grids.append(plain(values, points))
        return grids[-1]

    monkeypatch.setattr(patch_entropy, "grid_of", kept)
    _, gradient = loss(images)
    blocks = len(loss.outputs)
    assert len(grids) == blocks
    again = iter([])

    def frozen(*_: Any) -> Tensor:
        return next(again)

    monkeypatch.setattr(patch_entropy, "grid_of", frozen)
    generator, h = torch.Generator().manual_seed(0), 1e-6
    for _ in range(4):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            again = iter(grids)
            values.append(loss(images + sign * h * direction)[0])
        slope = (values[0] - values[1]) / (2 * h)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_parts_that_fit_in_memory_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of_family("vit")
    loss = loss_of(case, 8)
    whole, gradient = loss(case.images[:8])
    monkeypatch.setattr(loss.floating, "_at_once", 3)
    parts, others = loss(case.images[:8])
    assert parts == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(gradient, others, rtol=1e-3, atol=1e-6)


def test_moves_are_undone_and_keep_the_scalar_product() -> None:
    a, b = torch.randn((2, 2, 3, 8, 8), dtype=torch.float64).unbind()
    for shift, mirrored in (((2, -3), True), ((-1, 0), False)):
        moved = synthesis._moved(a, shift, mirrored)
        assert not torch.equal(moved, a)
        assert torch.equal(synthesis._moved_back(moved, shift, mirrored), a)
        back = synthesis._moved_back(b, shift, mirrored)
        assert float((moved * b).sum()) == pytest.approx(float((a * back).sum()))


def test_moves_reach_both_sides_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    moves = [synthesis._move((28, 56), 30 / 224, generator) for _ in range(500)]
    assert {down for (down, _), _ in moves} == set(range(-4, 5))
    assert {across for (_, across), _ in moves} == set(range(-8, 9))
    assert 200 < sum(mirrored for _, mirrored in moves) < 300


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_the_rate_rises_then_falls(steps: int) -> None:
    rates = synthesis._rates(steps)
    assert len(rates) == steps
    assert max(rates) == 1
    assert rates == sorted(rates[: rates.index(1)]) + sorted(rates[rates.index(1) :], reverse=True)
    assert min(rates) > 0


def test_the_loss_falls_and_its_parts_with_it() -> None:
    case = Case.of_family("vit")
    loss, start = loss_of(case, 8), case.images[:8]
    before, _ = loss(start)
    first = dict(loss.values)
    found = descend(loss, start, 60, 0.1, None, torch.Generator().manual_seed(0))
    after, _ = loss(found)
    assert after < before - 0.5
    assert loss.values["entropy"] > first["entropy"]
    assert loss.values["variation"] < 0.2 * first["variation"]
    assert loss.values["class"] < first["class"]


# Calibration without images ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["generated", "noise"])
def test_the_calibration_images_are_never_read(vit: Case, source: str) -> None:
    model = on_unread(vit, psaq(source=source))
    assert all(tensor.quantizer is not None for _, tensor in model.slots())


def test_later_methods_read_the_made_images_too(vit: Case) -> None:
    asked = psaq()
    later = recipe("papers", methods=[{"name": "bias_correction"}]).methods
    on_unread(vit, replace(asked, methods=[*asked.methods, *later]))


def test_made_images_calibrate_as_given_ones_would(vit: Case) -> None:
    images = images_of(vit, psaq())
    plain = quantize(vit.reference, vit.operators, recipe("papers"), BITS, [images], "cpu")
    assert all(map(torch.equal, scales(on_unread(vit, psaq())), scales(plain)))


def test_real_images_are_the_base_recipe_to_the_bit(vit: Case) -> None:
    found, wanted = vit.quantized(psaq(source="real"), BITS), vit.quantized(recipe("papers"), BITS)
    assert all(map(torch.equal, scales(found), scales(wanted)))
    assert torch.equal(vit.logits(found), vit.logits(wanted))


def test_without_iterations_the_images_are_the_noise(vit: Case) -> None:
    noise = images_of(vit, psaq(source="noise"))
    assert torch.equal(images_of(vit, psaq(iterations=0)), noise)
    assert not torch.equal(images_of(vit, psaq()), noise)
    assert noise.shape == (6, *vit.images.shape[1:])
    assert abs(float(noise.std()) - 1) < 0.05


def test_the_same_seed_gives_the_same_bytes(vit: Case) -> None:
    first, second, other = (images_of(vit, psaq(), seed) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_images_keep_to_valid_pixels(vit: Case) -> None:
    info = info_of(vit)
    low, high = pixel_range(info.preprocessing)
    images = images_of(vit, psaq(learning_rate=2.0), info=info)
    assert (images >= low).all()
    assert (images <= high).all()
    assert (images == low).any()
    assert images_of(vit, psaq(learning_rate=2.0)).amin() < low.amin()


def test_the_input_is_quantized_from_black_to_white(vit: Case) -> None:
    info = info_of(vit)
    low, high = (float(each.amin()) for each in pixel_range(info.preprocessing))
    found = dict(on_unread(vit, psaq(input_range="pixels"), info=info).slots())
    plain = dict(on_unread(vit, psaq(), info=info).slots())
    (slot,) = (s for s in found if s.operator == "patch_embed" and s.operand == "input")
    assert found[slot].ready()(torch.tensor([low, high])).tolist() == pytest.approx([low, high], abs=0.01)
    assert float(found[slot].ready().scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert float(plain[slot].ready().scale) < 0.99 * float(found[slot].ready().scale)
    weights = [s for s in found if s.operand == "weight"]
    assert all(torch.equal(found[s].ready().scale, plain[s].ready().scale) for s in weights)


def test_one_method_makes_its_images_once_for_all_bits(vit: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(synthesis, "descend", lambda *given: calls.append(1) or descend(*given))
    asked = psaq()
    methods = [made(call) for call in asked.methods]
    found = []
    for bits in ((8, 8), (4, 4)):
        tools = Tools(asked, bits, Unread(), 0, "cpu")
        ready = prepared(vit.reference, vit.operators, tools, methods)
        found.append(calibrated(ready))
    assert len(calls) == 1
    alone = quantize(vit.reference, vit.operators, asked, (4, 4), Unread(), "cpu")
    assert all(map(torch.equal, scales(found[1]), scales(alone)))
    assert len(calls) == 2


@pytest.mark.parametrize(("at", "rest"), [(3, 5), (6, 1)])
def test_a_killed_run_goes_on_to_the_same_images(
    vit: Case, at: int, rest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after `at` of seven steps, with a file after every second."""
    monkeypatch.setattr(synthesis, "SAVE_EVERY", 2)
    whole, state = images_of(vit, psaq(iterations=7)), State(tmp_path / "training", "key")
    plain, steps = Loss.__call__, []

    def made_images() -> Tensor:
        tools = Tools(psaq(iterations=7), BITS, Unread(), 0, "cpu", state)
        return torch.cat(list(prepared(vit.reference, vit.operators, tools).tools.batches))

    def counted(self: Loss, images: Tensor) -> tuple[float, Tensor]:
        steps.append(len(steps))
        if steps[-1] == at:
            raise KeyboardInterrupt
        return plain(self, images)

    monkeypatch.setattr(Loss, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        made_images()
    again = made_images()
    assert len(steps) == at + 1 + rest
    assert torch.equal(again, whole)


def test_features_have_no_class_and_are_calibrated_all_the_same() -> None:
    case = Case.of_family("vit_features")
    info = info_of(case, None)
    on_unread(case, psaq(), info=info)


# Refusals ---------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Two linear layers on flattened images of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x.flatten(1))))


def test_a_model_without_attention_is_refused() -> None:
    case = Case.of(Layers(), (1, 4, 4))
    with pytest.raises(UserError, match=r"^psaq_vit: no block of the model has attention between patches, "):
        on_unread(case, psaq())


def test_a_method_that_comes_first_is_refused(vit: Case) -> None:
    first = recipe("papers", methods=[{"name": "bias_correction"}]).methods
    asked = psaq()
    with pytest.raises(UserError, match=r"^psaq_vit: bias_correction comes before it and may have read the"):
        vit.quantized(replace(asked, methods=[*first, *asked.methods]))
    real = psaq(source="real")
    vit.quantized(replace(real, methods=[*first, *real.methods]))


def test_an_input_that_is_no_image_is_refused() -> None:
    case = Case.of(Layers(), (16,))
    with pytest.raises(UserError, match=r"^psaq_vit: the model's input has sizes \[16\], not those of an im"):
        on_unread(case, psaq())


def test_pixels_of_a_model_without_preprocessing_are_refused(vit: Case) -> None:
    with pytest.raises(UserError, match=r"^psaq_vit: input_range pixels needs the model's preprocessing"):
        on_unread(vit, psaq(input_range="pixels"))


def test_settings_out_of_range_are_refused() -> None:
    from pydantic import ValidationError

    for settings in ({"images": 0}, {"iterations": -1}, {"points": 1}, {"bandwidth": 0}, {"source": "web"}):
        with pytest.raises(ValidationError):
            PSAQViTSettings(**settings)  # type: ignore[arg-type]
