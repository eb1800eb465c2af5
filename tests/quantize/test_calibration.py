"""Calibration: the scales of an independent recomputation and of PPQ's own passes, in constant memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_quantized import Tiny, fake_quantize, images, symmetric, write_recipe
from torch import Tensor

from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.observers import Observer
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe, TensorSpec

Scales = dict[tuple[str, str, int], Tensor]


def scales(planned: list[QuantizedOperator]) -> Scales:
    return {
        (item.operator.name, tensor.operand, tensor.position): tensor.scale
        for item in planned
        for tensor in item.tensors
        if tensor.scale is not None
    }


def assert_equal(found: Scales, wanted: Scales) -> None:
    assert found.keys() == wanted.keys()
    different = [place for place in wanted if not torch.equal(found[place], wanted[place])]
    assert different == []


# Recomputed with numpy and ONNX Runtime -----------------------------------------------------------


def recomputed(batches: list[np.ndarray], tensor: QuantizedTensor) -> np.ndarray:
    """The scale of a tensor from its values, batch by batch."""
    spec = tensor.spec
    if spec.observer == "minmax":
        others = None if tensor.axis is None else tuple(i for i in range(batches[0].ndim) if i != tensor.axis)
        largest = np.max([np.abs(batch).max(axis=others) for batch in batches], axis=0)
    else:
        share, ends = round(spec.percentile / 100, 12), []
        for batch in batches:
            ordered, n = np.sort(batch, axis=None), batch.size
            ends.append((ordered[int(n * (1 - share))], ordered[min(int(n * share), n - 1)]))
        largest = np.abs(np.mean(ends, axis=0)).max()
    return 2 * largest / (spec.quant_max - spec.quant_min)


def with_quantized_parameters(path: Path, planned: list[QuantizedOperator]) -> tuple[onnx.ModelProto, Scales]:
    """The model, its parameters replaced by quantized ones of scales that numpy finds."""
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    found: Scales = {}
    for item in planned:
        for tensor in item.tensors:
            if tensor.operand in ("weight", "bias"):
                value = constants[nodes[item.operator.name].input[tensor.position]]
                scale = torch.from_numpy(np.asarray(recomputed([value], tensor), np.float32))
                found[item.operator.name, tensor.operand, tensor.position] = scale
                tensor.quantizer = symmetric(tensor, scale)
                new = f"{item.operator.name}.{tensor.position}"
                nodes[item.operator.name].input[tensor.position] = new
                quantized = fake_quantize(value, tensor).astype(np.float32)
                model.graph.initializer.append(numpy_helper.from_array(quantized, new))
    return model, found


def activations(model: onnx.ModelProto, batches: list[Tensor]) -> dict[str, list[np.ndarray]]:
    """Every tensor that depends on the images, for each batch, from ONNX Runtime."""
    names = [name for node in model.graph.node for name in node.output]
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(names, {"images": batch.numpy()}) for batch in batches]
    return {"images": [b.numpy() for b in batches]} | {n: [r[i] for r in runs] for i, n in enumerate(names)}


# Those who read a tensor want it quantized each in another way: granularity, bits, observer, percentile.
DIFFERENT = [
    {"select": {"role": ["norm1", "norm2", "norm"]}, "granularity": "per-channel"},
    {"select": {"role": "fc2", "operand": "input"}, "bits": 5},
    {"select": {"role": "gelu", "operand": "input"}, "observer": "percentile"},
    {"select": {"role": "residual1", "operand": "output"}, "observer": "percentile", "percentile": 97.0},
    {"select": {"role": "residual2", "operand": "input"}, "observer": "percentile", "percentile": 90.0},
]


@pytest.mark.parametrize(
    ("settings", "rules", "bits"),
    [
        ({"percentile": 99.0}, [], (8, 8)),
        ({"percentile": 97.5}, [], (4, 6)),
        ({"granularity": "per-channel", "observer": "minmax"}, [], (8, 8)),
        ({"observer": "minmax", "percentile": 95.0}, DIFFERENT, (8, 8)),
    ],
    ids=["percentile", "fewer bits", "per-channel", "different readers"],
)
def test_scales_are_those_of_numpy_over_onnx_runtime(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], rules: list[dict[str, Any]], bits: tuple[int, int]
) -> None:
    recipe = write_recipe(tmp_path, *rules, **settings)
    batches = [images(8, seed=1), images(8, seed=2), images(3, seed=3)]
    _, planned = tiny.calibrated(recipe, bits, batches)
    model, wanted = with_quantized_parameters(tiny.path, tiny.plan(recipe, bits))
    nodes, values = {node.name: node for node in model.graph.node}, activations(model, batches)
    for item in planned:
        node = nodes[item.operator.name]
        for tensor in item.tensors:
            if tensor.operand in ("input", "output"):
                name = (node.output if tensor.operand == "output" else node.input)[tensor.position]
                scale = torch.from_numpy(np.asarray(recomputed(values[name], tensor), np.float32))
                wanted[item.operator.name, tensor.operand, tensor.position] = scale
    found = scales(planned)
    assert found.keys() == wanted.keys()
    assert len(found) == 101
    for place, scale in wanted.items():
        torch.testing.assert_close(found[place], scale, rtol=1e-4, atol=1e-7, msg=str(place))


# Against PPQ's own passes -------------------------------------------------------------------------


def by_ppq(tiny: Tiny, recipe: Recipe | str, batches: list[Tensor]) -> Scales:
    """PPQ's two calibration passes on the same graph: every tensor has an observer of its own."""
    from ppq.quantization.optim import ParameterQuantizePass, RuntimeCalibrationPass

    planned = tiny.plan(recipe)
    engine = SimulatedModel(tiny.graph, "cpu", planned, engine="ppq").ppq
    graph, executor = engine.graph, engine.executor
    graph.inputs["images"].shape = [1, 1, 16, 16]
    ParameterQuantizePass().optimize(graph=graph, dataloader=batches, executor=executor)
    RuntimeCalibrationPass().optimize(
        graph=graph, dataloader=batches, executor=executor, calib_steps=len(batches), collate_fn=None
    )
    for item in planned:
        for tensor, config in zip(item.tensors, engine.configs(item.operator.name), strict=True):
            tensor.quantizer = symmetric(tensor, config.scale)
    return scales(planned)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("observer", ["study", "kl", "mse"])
def test_a_shared_variable_observed_once_gives_what_ppq_finds(
    tiny: Tiny, tmp_path: Path, observer: str
) -> None:
    # PPQ's pass for parameters is one pass only: its histograms are for activations.
    parameters = {"select": {"operand": ["weight", "bias"]}, "observer": "percentile"}
    recipe = "layernorm" if observer == "study" else write_recipe(tmp_path, parameters, observer=observer)
    batches = list(images(32).split(4))  # PPQ wants eight
    assert_equal(scales(tiny.calibrated(recipe, batches=batches)[1]), by_ppq(tiny, recipe, batches))


def test_what_two_operators_read_is_observed_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq2themoon.quantize import calibration

    built = []
    real = calibration.make_observer

    def build(spec: TensorSpec, axis: int | None) -> Observer:
        built.append(real(spec, axis))
        return built[-1]

    monkeypatch.setattr(calibration, "make_observer", build)
    model, planned = tiny.calibrated("vanilla", batches=[images(2)])
    parameters = [tensor for item in planned for tensor in item.tensors if tensor.is_parameter]
    names = {
        model.tensor_name(item.slot(tensor))
        for item in planned
        for tensor in item.tensors
        if not tensor.is_parameter
    }
    assert len(built) == len(parameters) + len(names) < sum(len(item.tensors) for item in planned)


# Two passes ---------------------------------------------------------------------------------------


class Counted:
    """Batches that count how often they are gone through."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.times = batches, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.times += 1
        return iter(self.batches)


@pytest.mark.parametrize(("observer", "passes"), [("percentile", 1), ("minmax", 1), ("kl", 2), ("mse", 2)])
def test_histogram_observers_go_through_the_images_twice(
    tiny: Tiny, tmp_path: Path, observer: str, passes: int
) -> None:
    batches = Counted(list(images(8).split(4)))
    _, planned = tiny.calibrated(write_recipe(tmp_path, observer=observer), batches=batches)
    assert batches.times == passes
    assert all(scale > 0 for scale in scales(planned).values())


def test_histograms_of_parameters_alone_need_one_pass_over_the_images(tiny: Tiny, tmp_path: Path) -> None:
    batches = Counted([images(4)])
    recipe = write_recipe(tmp_path, {"select": {"operand": ["weight", "bias"]}, "observer": "mse"})
    tiny.calibrated(recipe, batches=batches)
    assert batches.times == 1


@pytest.mark.parametrize("observer", ["kl", "mse"])
def test_both_passes_see_activations_that_are_not_quantized(
    tiny: Tiny, tmp_path: Path, observer: str
) -> None:
    """Else the first pass's results for other tensors would shift what the second one sees."""
    batches = list(images(8).split(4))
    others = {"select": {"operand": ["input", "output"]}, "quantize": False}
    late = {"select": {"role": ["qkv", "fc2"], "block": 1}, "quantize": True, "observer": observer}
    mixed = scales(tiny.calibrated(write_recipe(tmp_path, late), (8, 5), batches)[1])
    alone = scales(tiny.calibrated(write_recipe(tmp_path, others, late), (8, 5), batches)[1])
    assert len(alone) == 2 * 4 + 33 - 4  # two operators, and the parameters of the others
    assert_equal({place: mixed[place] for place in alone}, alone)


# Repeatable, in constant memory, loud -------------------------------------------------------------


def test_the_same_batches_give_the_same_scales(tiny: Tiny) -> None:
    batches = list(images(16).split(5))
    first, second = (scales(tiny.calibrated("layernorm", batches=batches)[1]) for _ in range(2))
    assert_equal(first, second)
    other = scales(tiny.calibrated("layernorm", batches=list(images(16, seed=9).split(5)))[1])
    assert not torch.equal(first["patch_embed", "input", 0], other["patch_embed", "input", 0])


def test_scales_are_in_force_afterwards_and_float32_on_the_cpu(tiny: Tiny) -> None:
    model, planned = tiny.calibrated("vanilla")
    found = scales(planned)
    assert len(found) == 101
    assert {(s.dtype, s.device.type, s.requires_grad) for s in found.values()} == {
        (torch.float32, "cpu", False)
    }
    quantized = model(images(2))
    with model.only(()):
        assert not torch.equal(model(images(2)), quantized)


def test_memory_does_not_grow_with_the_number_of_images(tiny: Tiny) -> None:
    """The batches are let go one by one, and what stays a batch is some numbers a tensor."""
    alive: list[weakref.ref[Tensor]] = []
    elements: list[int] = []

    def batches() -> Iterator[Tensor]:
        for seed in range(8):
            # The loops that pass a batch on hold the one before until they get the next.
            assert sum(reference() is not None for reference in alive) <= 1
            if seed in (2, 7):
                gc.collect()
                elements.append(sum(o.numel() for o in gc.get_objects() if type(o) is Tensor))
            batch = images(8, seed)
            alive.append(weakref.ref(batch))
            yield batch

    tiny.calibrated("layernorm", batches=batches())
    before, after = elements
    assert after - before <= 5 * 2 * 68  # batches, two numbers a tensor, 68 tensors; the images: 2048 a batch


def test_a_weight_that_is_no_number_is_named_though_an_order_statistic_passes_it_over(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = onnx.load(tiny.path)
    name = tiny.role("fc2", 1)
    (node,) = (n for n in model.graph.node if n.name == name)
    (weight,) = (t for t in model.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[3, 5] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    planned = tiny.plan(write_recipe(tmp_path, percentile=90.0))
    broken = SimulatedModel(model, "cpu", planned)  # as a method may leave one: no file is refused here
    with pytest.raises(UserError, match=rf"^operator '{name}', weight 1: values that are not finite$"):
        calibrate(broken, planned, [images(4)])


@pytest.mark.parametrize("observer", ["percentile", "minmax", "kl", "mse"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_is_named(
    tiny: Tiny, tmp_path: Path, observer: str, value: float
) -> None:
    batch = images(4)
    batch[2, 0, 3, 3] = value
    recipe = write_recipe(tmp_path, observer=observer, percentile=90.0)
    with pytest.raises(UserError, match=r"^operator 'patch_embed', input 0: values that are not finite$"):
        tiny.calibrated(recipe, batches=[images(4), batch])


def test_a_channel_that_is_always_zero_gets_a_scale(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, granularity="per-channel", observer="minmax")
    _, planned = tiny.calibrated(recipe, batches=[torch.zeros(2, 1, 16, 16)])
    assert scales(planned)["patch_embed", "input", 0].tolist() == [np.float32(1e-8)]


def test_calibrate_says_how_far_it_is(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    planned = tiny.plan("vanilla")
    calibrate(SimulatedModel(tiny.graph, "cpu", planned), planned, [images(2)] * 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("calibrate: 3 in ")
