"""Training: what learns, tensors of all images, losses, and a training that goes on where it was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slopes import slope
from tiny_methods import Case, recipe
from tiny_models import tiny_module
from torch import Tensor

from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.learning import loop
from ptq2themoon.quantize.learning import losses as block_losses
from ptq2themoon.quantize.learning.learned import Dropping, SoftRounding, mixed
from ptq2themoon.quantize.learning.loop import Draws, Group, train
from ptq2themoon.quantize.learning.losses import Fisher, kl, perturbation_weights
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.learning.store import Store
from ptq2themoon.quantize.learning.units import Unit, train_units
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import TrainingSettings

QUICK = {"iterations": 12, "batch": 4}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


def four_bits(scale: float = 0.25) -> Uniform:
    return Uniform(torch.tensor(scale), torch.tensor(0.0), 4, -8, 7, None)


# What learns ------------------------------------------------------------------------------------------


def test_a_soft_weight_is_the_weight_at_first_and_a_code_in_the_end() -> None:
    weight = torch.linspace(-1.9, 1.7, 37).double()
    soft = SoftRounding(four_bits(), weight)
    torch.testing.assert_close(soft.straight_through(weight), weight, rtol=0, atol=1e-6)
    codes = soft.hard() / 0.25
    assert torch.equal(codes, codes.round())
    assert ((codes - weight / 0.25).abs() < 1).all()
    assert not soft.settled
    soft.v = torch.where(soft.v >= 0, 10.0, -10.0).double()
    assert soft.settled
    assert torch.equal(soft.straight_through(weight), soft.hard())
    assert soft.undecided(2.0) == 0


def test_a_weight_beyond_the_codes_ends_at_the_last_one() -> None:
    soft = SoftRounding(four_bits(), torch.tensor([-9.0, 9.0]))
    assert soft.hard().tolist() == [-2.0, 1.75]


def test_gradients_of_soft_rounding_are_finite_differences() -> None:
    weight = torch.linspace(-1.59, 1.42, 11).double()  # none on the grid, where the gradient jumps
    soft = SoftRounding(four_bits(), weight)
    soft.v.requires_grad_()
    factors = torch.arange(1.0, 12.0).double()

    def loss() -> Tensor:
        return (soft.straight_through(weight) * factors).sum() + soft.undecided(3.0)

    loss().backward()
    assert soft.v.grad is not None
    for index in range(11):
        assert soft.v.grad[index].item() == pytest.approx(
            slope(loss, soft.v, index, 1e-6), rel=1e-4, abs=1e-6
        )


def test_a_dropped_value_passes_its_gradient_and_gives_the_scale_none() -> None:
    quantizer = four_bits()
    quantizer.scale = torch.tensor(0.25).requires_grad_()
    value = torch.linspace(-1, 1, 1000).requires_grad_()
    for drop, gives in ((1.0, None), (0.0, True), (0.5, True)):
        found = Dropping(quantizer, drop, torch.Generator().manual_seed(1)).straight_through(value)
        kept = (found == value).float().mean().item()
        assert kept == pytest.approx(drop, abs=0.06)
        (of_value, of_scale) = torch.autograd.grad(found.sum(), [value, quantizer.scale], allow_unused=True)
        assert torch.equal(of_value, torch.ones(1000))
        assert (of_scale is None) is (gives is None)


def test_what_is_mixed_is_drawn_from_the_generator() -> None:
    a, b = torch.zeros(500), torch.ones(500)
    first, again = (mixed(a, b, 0.3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.mean().item() == pytest.approx(0.7, abs=0.06)
    assert mixed(a, b, 0.0, torch.Generator()) is b


# Tensors of all images --------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [10**9, 100])
def test_tensors_come_back_whether_in_memory_or_in_files(budget: int) -> None:
    store = Store(6, {"a": 1, "windows": 3}, budget)
    a, windows, same = torch.randn(6, 5), torch.randn(18, 2), torch.arange(3)
    for start in (0, 4):
        part = slice(start, start + 4)
        store.put(
            start, {"a": a[part], "windows": windows.reshape(6, 3, 2)[part].flatten(0, 1), "same": same}
        )
    index = torch.tensor([5, 0])
    found = store.get(["a", "windows", "same"], index, "cpu")
    assert torch.equal(found["a"], a[index])
    assert torch.equal(found["windows"], windows.reshape(6, 3, 2)[index].flatten(0, 1))
    assert torch.equal(found["same"], same)
    assert store.in_files is (budget == 100)
    store.keep(["a"])
    assert torch.equal(store.get(["a"], slice(0, 6), "cpu")["a"], a)
    with pytest.raises(KeyError):
        store.get(["windows"], slice(0, 6), "cpu")


# The loop ---------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def trained(folder: Path | None, stop: int | None = None, **settings: Any) -> tuple[Tensor, list[float]]:
    """A vector that learns the mean of images; killed before the iteration `stop`."""
    images = torch.randn(20, 3, generator=torch.Generator().manual_seed(9))
    value, seen = torch.zeros(3, requires_grad=True), torch.zeros(())
    generator = torch.Generator().manual_seed(2)
    state = None if folder is None else State(folder, "key")
    draws = Draws(20, generator, state, "training", "train")

    def loss(iteration: int, index: Tensor) -> tuple[Tensor, Tensor]:
        if iteration == stop:
            raise Killed
        seen.add_(1)
        noise = torch.rand((), generator=generator)
        found = (value - images[index]).square().sum() + noise
        return found, found + seen

    options = TrainingSettings(**{"iterations": 30, "batch": 4, **settings})
    losses = train([Group([value], 0.1, cosine=True)], loss, options, draws, extra={"seen": seen})
    return value.detach(), losses


@pytest.mark.parametrize("stop", [1, 7, 29])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    value, losses = trained(None)
    with pytest.raises(Killed):
        trained(tmp_path / "state", stop)
    assert len(list((tmp_path / "state").iterdir())) == 1
    again, resumed = trained(tmp_path / "state")
    assert torch.equal(again, value)
    assert resumed == losses


def test_patience_ends_a_training_that_gains_no_more() -> None:
    _, losses = trained(None, iterations=3000, batch=20, patience=50)
    assert 100 <= len(losses) < 3000
    assert len(losses) % 50 == 0


def test_a_loss_that_is_not_finite_is_refused_in_one_line() -> None:
    value = torch.zeros(1, requires_grad=True)
    draws = Draws(4, torch.Generator(), None, "training", "train block 3")
    with pytest.raises(UserError, match=r"^train block 3: the loss is not finite at iteration 1$"):
        train(
            [Group([value], 1.0)],
            lambda _, __: (value.sum() / 0, value.sum()),
            TrainingSettings(iterations=3),
            draws,
        )


def test_files_of_another_training_or_broken_ones_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    State(tmp_path / "s", "one").save("x", {"a": torch.ones(2)}, {"n": 1})
    found = State(tmp_path / "s", "one").load("x")
    assert found is not None
    assert found[1] == {"n": 1}
    assert State(tmp_path / "s", "two").load("x") is None
    assert "other inputs or settings" in capsys.readouterr().err
    path = tmp_path / "s" / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert State(tmp_path / "s", "one").load("x") is None
    assert "cannot be read" in capsys.readouterr().err
    State(tmp_path / "s", "one").remove()
    assert not (tmp_path / "s").exists()


# Whole models -----------------------------------------------------------------------------------------


def learned(case: Case, state: State | None = None, **settings: Any) -> QuantizedModel:
    methods = [{"name": "qdrop", **QUICK, "loss": "fima", **settings}]
    batches = case.images.split(8)
    found = recipe("papers", methods=methods)
    return quantize(case.reference, case.operators, found, (4, 4), batches, "cpu", 3, state)


def same(a: QuantizedModel, b: QuantizedModel) -> bool:
    equal = all(x.ready() == y.ready() for (_, x), (_, y) in zip(a.slots(), b.slots(), strict=True))
    return equal and a.edited == b.edited


@pytest.mark.parametrize("after", [5, 20, 40])
def test_a_model_whose_training_was_killed_is_that_of_an_uninterrupted_one(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    wanted, state, count = learned(case), State(tmp_path / "state", "key"), 0
    batch = loop._batch

    def killed(draws: Draws, size: int) -> Tensor:
        nonlocal count
        count += 1
        if count == after:
            raise Killed
        return batch(draws, size)

    monkeypatch.setattr(loop, "_batch", killed)
    with pytest.raises(Killed):
        learned(case, state)
    found = learned(case, state)
    assert same(found, wanted)
    assert count < after + 1 + 4 * QUICK["iterations"] - (after - 1)  # what was done was not done again


def test_activations_in_files_give_the_same_bits(case: Case) -> None:
    assert same(learned(case, memory_mb=0), learned(case))


def test_training_on_some_of_the_images_reads_no_others(case: Case) -> None:
    fewer = replace(case, images=torch.cat([case.images[:8], 100 * case.images[8:]]))
    # Only the training is compared: calibration takes all images.
    found, wanted = (learned(one, images=8, iterations=1, scale_rate=0.0) for one in (case, fewer))
    assert [s for s, _ in found.slots()] == [s for s, _ in wanted.slots()]
    (first, _), (second, _) = (next(iter(m.slots())) for m in (found, wanted))
    assert first == second


# Losses -----------------------------------------------------------------------------------------------


def units(case: Case, bits: tuple[int, int] = (4, 4)) -> list[Unit]:
    """Of a model calibrated in the papers' protocol; what they read stays as it was at their turn."""
    model, found = case.quantized(recipe("papers"), bits), []
    graphs = SimulatedModel(model.rewritten, "cpu"), simulated(model, "cpu")

    def keep(unit: Unit) -> None:
        floating, quantized = (
            Store(unit.images, store.per_image, 2**30) for store in (unit.floating, unit.quantized)
        )
        for copy, store in ((floating, unit.floating), (quantized, unit.quantized)):
            names = list(store._values)
            copy.put(0, store.get(names, slice(0, unit.images), "cpu"))
        found.append(replace(unit, floating=floating, quantized=quantized))

    train_units(model, graphs, case.images[:6], keep, 2**30)
    return found


def test_the_rest_of_a_unit_gives_the_model_s_logits(case: Case) -> None:
    wanted = case.floating()[:6]
    for unit in units(case):
        index = slice(0, 6)
        torch.testing.assert_close(unit.to_logits(unit.wanted(index), index), wanted)


def two_gradients(unit: Unit, direction: Tensor) -> Tensor:
    """|gradient there - gradient here| over the step, in float64, summed over images, as in the paper."""
    (name,) = unit.outputs
    for segment in unit.rest:
        for key, value in segment.program.parameters.items():
            segment.program.parameters[key] = value.double()
    exact = unit.wanted(slice(0, 6))[name].double()
    logits = unit.to_logits({name: exact}, slice(0, 6)).detach()
    found = []
    for step in (1e-3, -1e-3):
        moved = (exact + step * direction).requires_grad_()
        loss = kl(unit.to_logits({name: moved}, slice(0, 6)), logits, block_losses.TEMPERATURE)
        found.append(torch.autograd.grad(loss, moved)[0])
    return (found[0] - found[1]).abs().sum(0) / 2e-3


def test_perturbation_weights_are_what_two_gradients_tend_to(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_losses, "PROBES", 1)
    unit = units(case)[1]
    (name,) = unit.outputs
    weights = perturbation_weights(unit)(torch.arange(6))[name][0]
    direction = block_losses.signs(weights.shape, torch.Generator().manual_seed(0))
    wanted = two_gradients(unit, direction)
    torch.testing.assert_close(weights.double(), wanted, rtol=1e-2, atol=1e-3 * float(wanted.max()))


def test_a_step_by_the_same_constant_is_one_that_layernorm_takes_out(case: Case) -> None:
    """So the paper's own step says nothing of a ViT's residual stream."""
    unit = units(case)[1]
    shape = unit.wanted(slice(0, 1))[unit.outputs[0]].shape
    random = two_gradients(unit, block_losses.signs(shape, torch.Generator().manual_seed(0))).max()
    assert two_gradients(unit, torch.ones(shape)).max() < 1e-6 * random


def test_gradients_of_the_fisher_are_real_and_the_loss_is_the_paper_s(case: Case) -> None:
    unit = units(case)[1]
    (name,) = unit.outputs
    loss = Fisher(unit, 10)
    with torch.no_grad():
        outputs = unit.segment(unit.inputs(slice(0, 6), quantized=True))
    index = torch.arange(6)
    assert float(loss(0, outputs, index)) == pytest.approx(2)  # both parts over themselves
    extra = {key: value.numpy() for key, value in loss.extra().items()}
    assert extra["seen"] == 1
    g, d = (extra[f"{key}.{name}"][:1].astype(np.float64) for key in ("g", "d"))
    assert g.max() > 0
    assert d.max() > 0
    half = {name: unit.wanted(index)[name] + 0.5 * (outputs[name] - unit.wanted(index)[name])}
    e = (half[name] - unit.wanted(index)[name]).abs().flatten(1).double().numpy()
    low = np.mean([row @ g.T @ np.linalg.inv(d @ d.T) @ g @ row for row in e])
    diagonal = np.mean(e**2 * g.mean(0))
    first = extra[f"first.{name}"]
    wanted = low / first[0] + diagonal / first[1]
    assert float(loss(1, half, index)) == pytest.approx(wanted, rel=1e-3)
    assert wanted == pytest.approx(0.5, rel=1e-3)  # both are squares


def test_the_state_of_a_training_names_no_place(tmp_path: Path) -> None:
    """A folder that is moved goes on."""
    State(tmp_path / "a", "k").save("x", {"v": torch.zeros(1)}, {"losses": [1.0]})
    (tmp_path / "a").rename(tmp_path / "b")
    found = State(tmp_path / "b", "k").load("x")
    assert found is not None
    assert json.dumps(found[1]) == '{"losses": [1.0]}'
