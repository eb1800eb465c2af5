"""PPQ's executor on a fused model: what it computes, which operators are quantized, and in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_quantized import Reference, Tiny, images, write_recipe
from torch import Tensor

from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.ppq_compat import core
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipes import Recipe

ROOT = Path(__file__).parents[2]
Calibrated = tuple[SimulatedModel, list[QuantizedOperator]]


@pytest.fixture(scope="module")
def calibrated(tiny: Tiny) -> Calibrated:
    """Per tensor and per channel both; afterwards all operators are in force."""
    return tiny.calibrated("layernorm")


def nsr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def captured(model: SimulatedModel, name: str, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of an operator, as computed."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = []
    model(pixels, {name: lambda _, inputs, outputs: seen.append((list(inputs), list(outputs)))})
    (both,) = seen
    return both


# Floating point -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"global_pool": "avg", "class_token": False},
        {"init_values": 0.5, "qk_norm": True},
        {"reg_tokens": 2, "qkv_bias": False},
        {"act_layer": "gelu_tanh", "pre_norm": True},
    ],
    ids=str,
)
def test_without_parameters_it_computes_what_onnx_runtime_does(
    tmp_path: Path, variant: dict[str, Any]
) -> None:
    model = Tiny.make(tmp_path, **variant)
    found = SimulatedModel(model.graph, "cpu")(images(3)).numpy()
    np.testing.assert_allclose(found, run_onnx(model.path, images(3).numpy()), rtol=0, atol=1e-5)


def test_with_no_operator_in_force_it_is_floating_point(tiny: Tiny, calibrated: Calibrated) -> None:
    model, _ = calibrated
    with model.only(()):
        found = model(images(5))
    assert torch.equal(found, SimulatedModel(tiny.graph, "cpu")(images(5)))
    np.testing.assert_allclose(found, run_onnx(tiny.path, images(5).numpy()), rtol=0, atol=1e-5)


def test_parameters_without_scales_are_not_in_force(tiny: Tiny) -> None:
    waiting = SimulatedModel(tiny.graph, "cpu", tiny.plan("vanilla"))
    assert torch.equal(waiting(images(2)), SimulatedModel(tiny.graph, "cpu")(images(2)))


def test_a_quantized_average_pool_runs(tmp_path: Path) -> None:
    pooled = Tiny.make(tmp_path, global_pool="avg", class_token=False)
    model, planned = pooled.calibrated("vanilla")
    wanted = Reference(pooled.path, planned).run(images(4))["head"]
    assert nsr(model(images(4)).numpy(), wanted) < 1e-4


# Quantized ----------------------------------------------------------------------------------------


def test_the_quantized_graph_is_its_definition_node_by_node(tiny: Tiny, calibrated: Calibrated) -> None:
    """Against numpy and ONNX's reference operators; on the edge of two integers a value may differ."""
    model, planned = calibrated
    floating, wanted = Reference(tiny.path).run(images(6)), Reference(tiny.path, planned).run(images(6))
    for name in model.quantized_operators:
        _, (found,) = captured(model, name, images(6))
        assert nsr(found.numpy(), wanted[name]) < nsr(wanted[name], floating[name]) / 20, name


def test_outputs_lie_on_the_grid_of_their_scale(calibrated: Calibrated) -> None:
    model, planned = calibrated
    for item in planned:
        tensor = item.tensors[-1]
        assert tensor.operand == "output"
        assert tensor.scale is not None
        _, (output,) = captured(model, item.operator.name, images(2))
        steps = output / tensor.scale  # per channel is along the last axis here
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert -128 <= steps.round().min() <= steps.round().max() <= 127


def test_ppq_is_told_the_study_s_settings(tiny: Tiny) -> None:
    planned = tiny.plan("vanilla")
    model = SimulatedModel(tiny.graph, "cpu", planned, engine="ppq")
    configs = [config for name in model.quantized_operators for config in model.ppq.configs(name)]
    assert len(configs) == 101
    properties = core.QuantizationProperty
    for config in configs:
        assert config.rounding == core.RoundingPolicy.ROUND_HALF_EVEN
        assert (config.num_of_bits, config.quant_min, config.quant_max) == (8, -128, 127)
        for wanted in (properties.SYMMETRICAL, properties.LINEAR, properties.PER_TENSOR):
            assert config.policy.has_property(wanted)
        assert config.observer_algorithm == "percentile"
        assert config.detail[core.OBSERVER_PERCENTILE_MANUL_OVERRIDE] == 0.9999


@pytest.mark.parametrize(
    "place", [("patch_embed", None), ("norm1", 1), ("softmax", 0), ("fc1", 1), ("head", None)]
)
def test_one_operator_quantized_is_plain_arithmetic(
    tiny: Tiny, calibrated: Calibrated, place: tuple[str, int | None]
) -> None:
    model, planned = calibrated
    name = tiny.role(*place)
    with model.only(()):
        inputs, (floating,) = captured(model, name, images(3))
        found = model.quantized_output(name, inputs)
        _, (again,) = captured(model, name, images(3))
    assert torch.equal(again, floating)  # it put nothing in force
    reference = Reference(tiny.path, planned)
    (node,) = (n for n in reference.model.graph.node if n.name == name)
    (wanted,) = reference.node(node, [value.numpy() for value in inputs], quantize=True)
    scale = next(i.tensors[-1].scale for i in planned if i.operator.name == name)
    assert scale is not None
    different = (found - torch.from_numpy(wanted)).abs()
    assert (different <= 1.001 * scale + 1e-6).all()
    assert (different > 1e-5).float().mean() < 0.002  # on the edge of two integers
    assert not torch.equal(found, floating)


# Which operators are in force ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_only_some_operators_is_a_model_with_parameters_for_those(
    tiny: Tiny, calibrated: Calibrated, count: int
) -> None:
    model, planned = calibrated
    chosen = np.random.default_rng(count).permutation(len(planned))[:count]
    some = [planned[i] for i in sorted(chosen)]
    with model.only({item.operator.name for item in some}):
        found = model(images(4))
    assert torch.equal(found, SimulatedModel(tiny.graph, "cpu", some)(images(4)))


def test_afterwards_all_are_in_force_again_even_after_a_failure(calibrated: Calibrated) -> None:
    model, planned = calibrated
    before = model(images(2))
    with model.only({planned[0].operator.name}):
        assert not torch.equal(model(images(2)), before)
    assert torch.equal(model(images(2)), before)
    with pytest.raises(UserError, match="wrong"), model.only(()):
        raise UserError("wrong")
    assert torch.equal(model(images(2)), before)
    model.activate(())
    assert not torch.equal(model(images(2)), before)
    model.activate(model.quantized_operators)
    assert torch.equal(model(images(2)), before)


def test_a_hook_sees_inputs_and_outputs_and_changes_nothing(tiny: Tiny, calibrated: Calibrated) -> None:
    model, _ = calibrated
    (inputs, (output,)), logits = captured(model, "head", images(3)), model(images(3))
    assert [tuple(value.shape) for value in inputs] == [(3, 32), (10, 32), (10,)]
    assert torch.equal(output, logits)
    weight = model.parameter("head", 1)
    assert weight.shape == (10, 32)
    assert not torch.equal(weight, inputs[1])  # the hook sees it quantized, the model keeps it


def test_what_a_hook_refuses_is_said_in_its_words(calibrated: Calibrated) -> None:
    model, _ = calibrated

    def refuse(name: str, _inputs: list[Tensor], _outputs: list[Tensor]) -> None:
        raise UserError(f"{name}: no")

    with pytest.raises(UserError, match=r"^head: no$"):
        model(images(1), {"head": refuse})


def test_the_last_batch_may_be_smaller_and_images_do_not_meet(calibrated: Calibrated) -> None:
    model, _ = calibrated
    whole = model(images(7))
    parts = torch.cat([model(part) for part in images(7).split(3)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


# Saved, and in another process --------------------------------------------------------------------


def test_a_new_process_computes_the_same_bits(tiny: Tiny, calibrated: Calibrated, tmp_path: Path) -> None:
    model, planned = calibrated
    paths = tiny.saved(planned, tmp_path)
    np.save(tmp_path / "images.npy", images(5).numpy())
    code = f"""
import numpy, pathlib, torch
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.simulation import simulated
torch.set_num_threads({torch.get_num_threads()})
folder = pathlib.Path({str(tmp_path)!r})
qparams = read_qparams(folder / "qparams.json", folder / "qparams.safetensors")
model = simulated(qparams.model(read_graph(pathlib.Path({str(tiny.path)!r}))), "cpu")
numpy.save(folder / "logits.npy", model(torch.from_numpy(numpy.load(folder / "images.npy"))).numpy())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.load(tmp_path / "logits.npy").tobytes() == model(images(5)).numpy().tobytes()
    here = simulated(read_qparams(*paths).model(tiny.graph), "cpu")
    assert torch.equal(here(images(5)), model(images(5)))
    assert here.quantized_operators == model.quantized_operators


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stranger", [Operator("blocks.7.fc1", "PPQBiasFusedMatMul", "fc1", 7), Operator("head", "MatMul", "head")]
)
def test_parameters_of_another_graph_are_refused(
    tiny: Tiny, calibrated: Calibrated, stranger: Operator
) -> None:
    _, planned = calibrated
    other = [*planned[:-1], QuantizedOperator(stranger, planned[-1].tensors)]
    with pytest.raises(
        UserError, match=rf"fused\.onnx: has no operator '{stranger.name}' of type .*another graph"
    ):
        SimulatedModel(tiny.graph, "cpu", other, source=tiny.path)


def test_a_graph_that_ppq_cannot_load_is_refused(tiny: Tiny) -> None:
    bad = onnx.ModelProto.FromString(tiny.graph.SerializeToString())
    bad.graph.node[1].name = bad.graph.node[0].name
    with pytest.raises(UserError, match=r"bad\.onnx: PPQ cannot load this graph \(.*is there twice"):
        SimulatedModel(bad, "cpu", source="bad.onnx")


def test_the_model_given_stays_as_it_is(tiny: Tiny) -> None:
    before = tiny.graph.SerializeToString(deterministic=True)
    model, _ = tiny.calibrated("layernorm")
    model(images(2))
    assert tiny.graph.SerializeToString(deterministic=True) == before


# Fewer bits ---------------------------------------------------------------------------------------


@pytest.fixture
def minmax(tmp_path: Path) -> Recipe:
    """Without clipping, so that fewer bits only mean longer steps."""
    return write_recipe(tmp_path, observer="minmax")


def test_the_error_of_the_logits_falls_with_every_bit(tiny: Tiny, minmax: Recipe) -> None:
    exact = SimulatedModel(tiny.graph, "cpu")(images(24)).numpy()
    errors = [
        nsr(tiny.calibrated(minmax, (b, b))[0](images(24)).numpy(), exact) for b in (3, 4, 6, 8, 12, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[1] / 30  # 8 against 4 bits; 256 were every error linear
    assert errors[-1] < 1e-6
