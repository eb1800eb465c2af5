"""The program against PPQ's executor: the same bits, operator by operator, in every family."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import onnx
import pytest
import torch
from families import FAMILIES, image_shape
from tiny_models import random_images
from tiny_quantized import Tiny, images, symmetric, write_recipe
from torch import Tensor

from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.errors import UserError

Values = dict[str, tuple[list[Tensor], list[Tensor]]]


class Both(NamedTuple):
    """One quantized model in both engines."""

    program: SimulatedModel
    ppq: SimulatedModel
    planned: list[QuantizedOperator]
    images: Tensor
    graph: onnx.ModelProto


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """LayerNorm and the last layers of MLPs per channel, 6 bit activations: every kind of grid."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    tiny = Tiny.of_family(name, folder)
    recipe = write_recipe(
        folder,
        {"select": {"role": ["norm1", "norm2", "fc2"]}, "granularity": "per-channel", "observer": "minmax"},
    )
    batches = [torch.from_numpy(random_images(4, *image_shape(name), seed=seed)) for seed in (1, 2)]
    program, planned = tiny.calibrated(recipe, (8, 6), batches)
    by_ppq = SimulatedModel(tiny.graph, "cpu", planned, engine="ppq")
    return Both(program, by_ppq, planned, batches[0], tiny.graph)


def seen(
    model: SimulatedModel, pixels: Tensor, active: Collection[str] | None = None
) -> tuple[Tensor, Values]:
    """Logits, and a copy of what each quantized operator reads and makes."""
    found: Values = {}

    def capture(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        found[name] = [x.clone() for x in inputs if x is not None], [x.clone() for x in outputs]

    with model.only(model.quantized_operators if active is None else active):
        return model(pixels, dict.fromkeys(model.quantized_operators, capture)), found


def assert_same(found: Values, wanted: Values) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        for ours, theirs in zip(found[name], wanted[name], strict=True):
            assert len(ours) == len(theirs)
            assert all(map(torch.equal, ours, theirs)), name


@pytest.mark.parametrize("every", [1, 2, 0], ids=["all", "every second", "none"])
def test_every_operator_reads_and_makes_the_same_bits(both: Both, every: int) -> None:
    active = both.ppq.quantized_operators[::every] if every else []
    logits, values = seen(both.program, both.images, active)
    expected, wanted = seen(both.ppq, both.images, active)
    assert torch.equal(logits, expected)
    assert_same(values, wanted)
    assert bool(active) != torch.equal(expected, seen(both.ppq, both.images, [])[0])


def test_one_operator_at_a_time_is_the_same(both: Both) -> None:
    found = dict(both.program.one_at_a_time(both.images, SimulatedModel(both.graph, "cpu")))
    by_ppq = SimulatedModel(both.graph, "cpu", engine="ppq")
    wanted = dict(both.ppq.one_at_a_time(both.images, by_ppq))
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_operator_alone_on_float_inputs_is_the_same(both: Both) -> None:
    _, values = seen(both.ppq, both.images, [])
    for name, (inputs, _) in values.items():
        found, wanted = (model.quantized_output(name, inputs) for model in both[:2])
        assert torch.equal(found, wanted), name


def test_images_in_parts_are_the_images(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.cat([both.ppq(part) for part in both.images.split(3)])
    monkeypatch.setattr(both.program, "_at_once", 3)
    assert [len(part) for part in both.program.parts(both.images)] == [3, 1]
    assert torch.equal(both.program(both.images), expected)


def test_what_is_captured_is_not_changed_later(tiny: Tiny) -> None:
    model, _ = tiny.calibrated("vanilla")
    kept: Values = {}

    def keep(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        kept[name] = inputs, outputs

    model(images(3), dict.fromkeys(model.quantized_operators, keep))
    assert_same({name: (list(i), list(o)) for name, (i, o) in kept.items()}, seen(model, images(3))[1])


def test_a_new_scale_is_seen(tiny: Tiny) -> None:
    model, planned = tiny.calibrated("vanilla")
    before = model(images(2))
    tensor = planned[-1].tensors[-1]
    assert planned[-1].operator.name == tiny.role("head")
    assert tensor.scale is not None
    tensor.quantizer = symmetric(tensor, tensor.scale * 8)
    assert not torch.equal(model(images(2)), before)


def test_the_largest_tensor_of_a_part_is_small(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq2themoon.quantize import simulation

    sizes = []
    for budget in (10_000, 100_000):
        monkeypatch.setattr(simulation, "LARGEST_BYTES", budget)
        model = SimulatedModel(tiny.graph, "cpu")
        sizes.append(len(model.parts(images(64))[0]))
        assert len(SimulatedModel(tiny.graph, "cpu", engine="ppq").parts(images(64))) == 1
    assert sizes[0] * 10 == pytest.approx(sizes[1], abs=9)


def test_a_failing_operator_is_named(tiny: Tiny) -> None:
    with pytest.raises(RuntimeError, match=r"operator 'patch_embed' \(Conv\)"):
        SimulatedModel(tiny.graph, "cpu")(torch.zeros(1, 3, 16, 16))

    def refuse(name: str, *_: object) -> None:
        raise UserError("stop")

    with pytest.raises(UserError, match=r"^stop$"):
        SimulatedModel(tiny.graph, "cpu")(images(1), {tiny.role("head"): refuse})
