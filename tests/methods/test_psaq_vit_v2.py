"""PSAQ-ViT V2: both losses by their equations, each step going its way, runs that no real image enters."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_info
import torch
from tiny_methods import FLOATING_WEIGHTS, Case, Unread, recipe
from tiny_models import tiny_module
from torch import Tensor, nn
from torch.nn import functional as F

from ptq2themoon.methods import all_made, labelled, made
from ptq2themoon.pipeline import calibrated, prepared, quantize
from ptq2themoon.quantize.adversarial import Contest, Difference, whole
from ptq2themoon.quantize.image_generator import ImageGenerator
from ptq2themoon.quantize.image_loss import Weights, attended
from ptq2themoon.quantize.learning import loop
from ptq2themoon.quantize.learning.loop import Draws
from ptq2themoon.quantize.learning.pupil import Rates
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.patch_entropy import differential_entropy, total_variation
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.synthesis import pixel_range
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)
SIZE = (1, 16, 16)
SHORT = {"generator_steps": 4, "student_steps": 2, "batch": 4, "images": 6}


def v2(**settings: Any) -> Recipe:
    return recipe("papers", methods=[{"name": "psaq_vit_v2", **SHORT, **settings}])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), SIZE)


@pytest.fixture(scope="module")
def student(case: Case) -> QuantizedModel:
    return case.quantized(recipe("papers"), BITS)


def contest(case: Case, state: State | None = None, *, rate: float = 1e-2, **weights: float) -> Contest:
    random = torch.Generator().manual_seed(0)
    of_parts = {"entropy": 1.0, "output": -1.0, "variation": 0.05, **weights}
    return Contest(
        ImageGenerator(SIZE, None, "cpu", random),
        SimulatedModel(case.reference, "cpu"),
        attended(case.reference, case.operators),
        Weights(**of_parts, bandwidth=0.05, points=10),
        2700.0,
        rate,
        8,
        0,
        state,
        "contest",
    )


def tools_of(
    asked: Recipe, seed: int = 0, state: State | None = None, info: ModelInfo | None = None
) -> Tools:
    return Tools(asked, BITS, Unread(), seed, "cpu", state, info)


def run(case: Case, asked: Recipe, **given: Any) -> tuple[QuantizedModel, Tensor]:
    """The quantized model, and the images that it has in the end."""
    tools = tools_of(asked, **given)
    model = calibrated(prepared(case.reference, case.operators, tools))
    return model, torch.cat(list(tools.batches))


def info_of(size: tuple[int, int, int] = SIZE) -> ModelInfo:
    return ModelInfo(**tiny_info.model_info(size, 5))


def same(a: QuantizedModel, b: QuantizedModel) -> bool:
    equal = all(x.ready() == y.ready() for (_, x), (_, y) in zip(a.slots(), b.slots(), strict=True))
    return equal and a.edited == b.edited


def layers(graph: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in graph.graph.initializer}


# The losses, against plain torch ------------------------------------------------------------------------


def plain_outputs(module: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of the module, and the output of each attention, [B, heads, tokens, channels]."""
    found: list[Tensor] = []
    keep = lambda _, inputs: found.append(inputs[0])  # noqa: E731
    hooks = [block.attn.proj.register_forward_pre_hook(keep) for block in module.blocks]
    logits = module(images)
    for hook in hooks:
        hook.remove()
    heads = module.blocks[0].attn.num_heads
    return logits, [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in found]


def test_the_generator_s_loss_is_that_of_the_equation(case: Case, student: QuantizedModel) -> None:
    module, images = tiny_module(), case.images[:5].clone().requires_grad_()
    quantized = whole(simulated(student, "cpu"))
    loss = contest(case, entropy=0.7, output=-3.0, variation=0.2).loss(quantized)
    value, gradient = loss(images.detach())

    logits, contexts = plain_outputs(module, images)
    entropy = torch.zeros(5)
    for context in contexts:
        patches = context.mean(1)[:, 1:]
        similar = F.cosine_similarity(patches[:, :, None], patches[:, None], dim=-1).flatten(1)
        entropy = entropy + differential_entropy(similar, 0.05, 10)
    measure = (32 * 3 * 224 * 224 / images.numel()) ** 0.5
    variation = (measure * total_variation(images) - 2700.0).abs()
    (found,) = quantized.student.run({loss.floating.input_name: images})
    wanted = 0.2 * variation - 0.7 * entropy.mean() - 3.0 * (found - logits).abs().mean()
    (slope,) = torch.autograd.grad(wanted, images)
    assert value == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
    assert loss.values["difference"] == pytest.approx((found - logits).abs().mean().item(), rel=1e-3)


def test_the_difference_is_the_mean_absolute_one(case: Case, student: QuantizedModel) -> None:
    logits, images = case.floating()[:6], case.images[:6]
    found = whole(simulated(student, "cpu"))(logits, images, 0)
    wanted = np.abs((case.logits(student)[:6] - logits).numpy()).mean()
    assert found.item() == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("at_once", [8, 3])
def test_a_student_s_step_is_one_of_adam_on_the_mean_difference(
    case: Case, student: QuantizedModel, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Whatever fits in memory at once; images are those that the generator makes after its own step."""
    game, quantized = contest(case, rate=1e-9), whole(simulated(student, "cpu"))
    key = next(key for key in quantized.student.parameters if key.endswith("fc1.1"))
    weight = quantized.student.parameters[key].clone().requires_grad_()
    random = torch.Generator().manual_seed(1)
    for _ in range(2):  # noise of the generator's step, then of the student's
        torch.randperm(8, generator=random)
        noise = game.generator.noise(8, random)
    images = game.generator.images(noise)
    plain = whole(simulated(student, "cpu"))
    plain.student.parameters[key] = weight
    error = plain(SimulatedModel(case.reference, "cpu")(images).clone(), images, 0)
    (slope,) = torch.autograd.grad(error, weight)
    monkeypatch.setattr(game.teacher, "_at_once", at_once)
    trained = game.train_both(1, 1, quantized, Rates(1e-3))
    assert trained.losses[1] == pytest.approx(error.item(), rel=1e-4)
    moved = trained.found.parameters[key] - weight.detach()
    sure = slope.abs() > 1e-3 * slope.abs().max()
    assert torch.equal(moved[sure].sign(), -slope[sure].sign())


# What training does -------------------------------------------------------------------------------------


def judged(game: Contest, difference: Difference) -> dict[str, float]:
    """Parts of the loss of the same noise."""
    loss = game.loss(difference)
    loss(game.generator.images(game.generator.noise(16, torch.Generator().manual_seed(5))))
    return loss.values


def test_the_generator_raises_entropy_and_difference(case: Case, student: QuantizedModel) -> None:
    difference = whole(simulated(student, "cpu"))
    game = contest(case, variation=0.0)
    before = judged(game, difference)
    losses = game.train_generator(1, 30, difference)
    after = judged(game, difference)
    assert after["entropy"] > before["entropy"] + 0.02
    assert after["difference"] > 1.05 * before["difference"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_the_generator_is_led_to_the_wanted_variation(case: Case) -> None:
    game = contest(case, entropy=0.0)
    losses = game.train_generator(1, 30, None)
    assert losses[-1] < 0.5 * losses[0]


def test_the_student_lowers_the_difference(case: Case, student: QuantizedModel) -> None:
    game, difference = contest(case, rate=1e-9), whole(simulated(student, "cpu"))
    losses = game.train_both(1, 40, difference, Rates(1e-3, 1e-3, 1e-3, cosine=True, relative=True)).losses
    own = losses[1::2]
    assert len(losses) == 80
    assert np.mean(own[-5:]) < 0.8 * np.mean(own[:5])


def test_weights_biases_and_all_scales_move_and_layernorms_stay(case: Case) -> None:
    trained, _ = run(case, v2())
    plain, _ = run(case, v2(student_steps=0))
    for (slot, found), (_, other) in zip(trained.slots(), plain.slots(), strict=True):
        assert not torch.equal(found.ready().scale, other.ready().scale), slot
    before, after = layers(plain.edited), layers(trained.edited)
    moved = {name for name, data in after.items() if before.get(name) != data}
    assert len(moved) >= 2 * (2 * 4 + 1)
    assert not any("norm" in name for name in moved)


def test_scales_stay_where_their_rate_is_0(case: Case) -> None:
    trained, _ = run(case, v2(scale_rate=0.0))
    plain, _ = run(case, v2(student_steps=0))
    assert all(x.ready() == y.ready() for (_, x), (_, y) in zip(trained.slots(), plain.slots(), strict=True))
    assert trained.edited != plain.edited


# Images -------------------------------------------------------------------------------------------------


def test_no_student_is_the_base_recipe_on_the_generator_s_images(case: Case) -> None:
    found, images = run(case, v2(student_steps=0))
    base = quantize(case.reference, case.operators, recipe("papers"), BITS, [images], "cpu")
    assert same(found, base)
    assert torch.equal(case.logits(found), case.logits(base))
    assert images.shape == (6, *SIZE)


def test_without_steps_the_images_are_those_of_a_generator_as_drawn(case: Case) -> None:
    _, images = run(case, v2(generator_steps=0, student_steps=0))
    random = torch.Generator().manual_seed(0)
    generator = ImageGenerator(SIZE, None, "cpu", random)
    torch.rand((), generator=random)  # of total variation
    assert torch.equal(images, generator.images(generator.noise(6, random)))
    _, trained = run(case, v2(student_steps=0))
    assert not torch.equal(images, trained)


def test_later_methods_read_the_generator_s_last_images(case: Case) -> None:
    asked = v2()
    later = recipe("papers", methods=[{"name": "bias_correction"}]).methods
    model, images = run(case, replace(asked, methods=[*asked.methods, *later]))
    alone, _ = run(case, asked)
    _, first = run(case, v2(student_steps=0))
    assert not torch.equal(images, first)
    assert model.edited != alone.edited


def test_the_same_seed_gives_the_same_bits_and_draws_from_it_alone(case: Case) -> None:
    first, images = run(case, v2(), seed=3)
    state = torch.random.get_rng_state()
    second, again = run(case, v2(), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, again)
    assert same(first, second)
    assert not torch.equal(run(case, v2(), seed=4)[1], images)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 224, 224), (3, 30, 50), (1, 4, 4)])
def test_a_generator_makes_images_of_the_model_s_size_within_its_pixels(size: tuple[int, int, int]) -> None:
    low, high = pixel_range(info_of(size).preprocessing)
    generator = ImageGenerator(size, (low, high), "cpu", torch.Generator().manual_seed(0))
    images = generator.images(50 * generator.noise(3, torch.Generator().manual_seed(1)))
    assert images.shape == (3, *size)
    assert (images >= low).all()
    assert (images <= high).all()
    assert sum(each.numel() for each in generator.parameters) < 1e6
    plain = ImageGenerator(size, None, "cpu", torch.Generator().manual_seed(0))
    found = plain.images(plain.noise(3, torch.Generator().manual_seed(1)))
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.var(correction=0)) == pytest.approx(1, rel=0.05)


def test_the_input_is_quantized_from_black_to_white(case: Case) -> None:
    info = info_of()
    low, high = (float(each.amin()) for each in pixel_range(info.preprocessing))
    found = dict(run(case, v2(input_range="pixels", student_steps=0), info=info)[0].slots())
    (slot,) = (s for s in found if s.operator == "patch_embed" and s.operand == "input")
    assert float(found[slot].ready().scale) == pytest.approx((high - low) / 255, rel=1e-5)


def test_features_are_trained_without_classes() -> None:
    features = Case.of_family("vit_features")
    run(features, v2(generator_steps=2, student_steps=1))


# A run that was killed ----------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [2, 4, 6, 8])
def test_a_killed_run_goes_on_to_the_same_bits(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of eight steps: two of the generator alone, two against a calibrated student, four by turns."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    wanted, images = run(case, v2())
    batch, steps, state = loop._batch, [], State(tmp_path / "training", "key")

    def killed(draws: Draws, size: int) -> Tensor:
        steps.append(len(steps))
        if steps[-1] + 1 == at:
            raise Killed
        return batch(draws, size)

    monkeypatch.setattr(loop, "_batch", killed)
    with pytest.raises(Killed):
        run(case, v2(), state=state)
    assert len(steps) == at
    found, again = run(case, v2(), state=state)
    assert len(steps) == 9
    assert torch.equal(again, images)
    assert same(found, wanted)
    whole_run, _ = run(case, v2(), state=state)
    assert len(steps) == 9
    assert same(whole_run, wanted)


# Refusals -----------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """One linear layer on images of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x.flatten(1)))


def test_a_model_without_attention_or_without_images_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^psaq_vit_v2: no block of the model has attention .*; leave it out$"
    ):
        run(Case.of(Layers(), (1, 4, 4)), v2())
    with pytest.raises(UserError, match=r"^psaq_vit_v2: the model's input has sizes \[16\], not those of an"):
        run(Case.of(Layers(), (16,)), v2())


def test_a_method_that_comes_first_is_refused(case: Case) -> None:
    first, asked = recipe("papers", methods=[{"name": "bias_correction"}]).methods, v2()
    with pytest.raises(UserError, match=r"^psaq_vit_v2: bias_correction comes before it and may have read"):
        run(case, replace(asked, methods=[*first, *asked.methods]))


@pytest.mark.parametrize("name", ["psaq_vit", "psaq_vit_v2"])
def test_numbers_that_a_fixed_batch_does_not_divide_are_refused(case: Case, name: str) -> None:
    fixed = copy.deepcopy(case.reference)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    few = recipe("papers", methods=[{"name": name, "images": 6}])
    said = rf"^{name}: the model takes 4 images at once, and images: 6 is no multiple of that; say images: 8$"
    with pytest.raises(UserError, match=said):
        run(replace(case, reference=fixed), few)
    with pytest.raises(UserError, match=r"^psaq_vit_v2: .* batch: 6 is no multiple of that; say batch: 8$"):
        run(replace(case, reference=fixed), v2(images=8, batch=6))


def test_a_model_with_a_fixed_batch_is_trained_in_such_batches(case: Case) -> None:
    fixed = copy.deepcopy(case.reference)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model, images = run(replace(case, reference=fixed), v2(images=8, batch=8))
    assert images.shape == (8, *SIZE)
    assert all(tensor.quantizer is not None for _, tensor in model.slots())


def test_what_leaves_nothing_to_train_is_refused_in_one_line(case: Case) -> None:
    calls = v2().methods
    floating = recipe("papers", FLOATING_WEIGHTS)
    with pytest.raises(UserError, match=r"^psaq_vit_v2: the recipe quantizes no weight of a linear layer"):
        run(case, replace(floating, methods=calls))
    run(case, replace(floating, methods=v2(student_steps=0).methods))


def test_it_decides_weights_and_scales_only_where_it_trains_them() -> None:
    other = recipe("papers", methods=[{"name": "gptq"}]).methods
    powers = recipe("papers", methods=[{"name": "power_of_two"}]).methods
    with pytest.raises(
        UserError, match=r"^psaq_vit_v2 and gptq both decide .*; say student_steps: 0 for psa"
    ):
        all_made([*v2().methods, *other])
    with pytest.raises(UserError, match=r"both decide the scales in the end; say scale_rate: 0 for psaq_vit"):
        all_made([*v2().methods, *powers])
    all_made([*v2(scale_rate=0.0).methods, *powers])
    all_made([*v2(student_steps=0).methods, *other, *powers])


def test_figures_say_which_preset_it_was_and_presets_differ() -> None:
    (call,) = recipe("papers", methods=[{"name": "psaq_vit_v2"}]).methods
    assert labelled(call) == "psaq_vit_v2 (quick)"
    quick = made(call).settings
    paper = made(call.model_copy(update={"preset": "paper"})).settings
    for name in ("of_generator", "of_student", "batch_size"):
        assert getattr(paper, name) > getattr(quick, name) > 0


def test_a_loss_that_is_not_finite_is_refused_in_one_line(case: Case) -> None:
    game = contest(case, rate=1e30)
    with pytest.raises(UserError, match=r"^train the generator: the loss is not finite at iteration \d+$"):
        game.train_generator(1, 5, None)
