"""What docs/ppq.md says of PPQ beyond what we rely on: its quirks, each shown on a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from ppq_config import config

from ptq2themoon.ppq_compat import (
    TensorObserverFactory,
    core,
    executor,
    fake_quantize,
    ir,
    parser,
    ppq,
    uniform_config,
)
from ptq2themoon.quantize.observers import OBSERVERS

Config = core.TensorQuantizationConfig
Configs = dict[str, Config]
NORMAL = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
LARGEST = float(np.abs(NORMAL).max())


def calibrated(
    batches: Sequence[np.ndarray], observer: str, bits: int = 8, axis: int | None = None
) -> core.TensorQuantizationConfig:
    """The configuration with the scale that an observer finds, in as many passes as it needs."""
    found = config(axis=axis, bits=bits, observer=observer)
    watching = TensorObserverFactory.build_observer(ir.Variable("x"), found)
    for _ in range(OBSERVERS[observer].passes):
        for batch in batches:
            watching.observe(torch.from_numpy(batch))
        watching.render_quantization_config()
    return found


def clip(observer: str, bits: int) -> float:
    """The largest value that a scale leaves, as a fraction of the largest there is."""
    return float(calibrated([NORMAL], observer, bits).scale) * (2**bits - 1) / 2 / LARGEST


def loss(found: core.TensorQuantizationConfig) -> float:
    """Mean squared error, as a fraction of the mean square."""
    x = torch.from_numpy(NORMAL)
    return float((fake_quantize(x, found) - x).square().mean() / x.square().mean())


def test_the_largest_value_falls_between_two_steps_and_is_clipped_by_half_a_step() -> None:
    found = calibrated([np.float32([-0.5, 255])], "minmax")
    assert found.scale == 2  # 255 is 127.5 steps of 2; there are 127
    assert fake_quantize(torch.tensor([255.0, -255.0]), found).tolist() == [254, -256]


def test_percentile_depends_on_how_images_are_batched_and_minmax_does_not() -> None:
    halves = np.split(NORMAL, 2)
    assert calibrated(halves, "minmax").scale == calibrated([NORMAL], "minmax").scale
    assert calibrated(halves, "percentile").scale != calibrated([NORMAL], "percentile").scale
    # In batches so small that the percentile leaves out nothing it is the mean of their largest values.
    wanted = max(np.mean([part.max() for part in np.split(NORMAL, 50)]), 0)
    lowest = np.mean([part.min() for part in np.split(NORMAL, 50)])
    found = calibrated(np.split(NORMAL, 50), "percentile").scale
    assert float(found) == pytest.approx(2 * max(wanted, -lowest) / 255, rel=1e-5)


@pytest.mark.parametrize("observer", ["percentile", "kl", "mse"])
def test_only_minmax_works_per_channel(observer: str) -> None:
    with pytest.raises((PermissionError, ValueError)):
        calibrated([NORMAL.reshape(-1, 10)], observer, axis=1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kl_collapses_below_five_bits(bits: int) -> None:
    """Its first candidate, a few bins around zero, has no KL divergence (0/0) and is taken."""
    assert clip("kl", bits) < 0.01
    assert loss(calibrated([NORMAL], "kl", bits)) > 0.95  # hardly anything is left


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_kl_is_of_use_from_five_bits_on(bits: int) -> None:
    assert clip("kl", bits) > 0.5
    assert loss(calibrated([NORMAL], "kl", bits)) < 0.01


def test_mse_tries_eighths_of_the_largest_value_at_eight_bits() -> None:
    eighths = clip("mse", 8) * 8
    assert eighths == pytest.approx(round(eighths), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "matmul", "gemm"),
    [
        ("TensorRTQuantizer", 0, 0),
        ("OpenvinoQuantizer", 0, 0),
        ("OnnxruntimeQuantizer", None, 0),
    ],
)
def test_weight_axis_of_ppq_s_own_quantizers(
    name: str, matmul: int | None, gemm: int, tmp_path: Path
) -> None:
    """Axis 0: of MatMul's [in, out] weight the input channel, of Gemm's [out, in] (transB) the output."""
    weights = {"w": np.ones((6, 4), np.float32), "v": np.ones((5, 4), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
        helper.make_node("Gemm", ["h", "v"], ["y"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "two.onnx")
    loaded = parser.OnnxParser().build(str(tmp_path / "two.onnx"))
    own = getattr(ppq.quantization.quantizer, name)(loaded)
    for operator, axis in (("matmul", matmul), ("gemm", gemm)):
        weight = own.init_quantize_config(loaded.operations[operator]).input_quantization_config[1]
        per_channel = weight.policy.has_property(core.QuantizationProperty.PER_CHANNEL)
        assert (weight.channel_axis if per_channel else None) == axis


# Where PPQ's own pipeline quantizes an activation ---------------------------------------------------

READERS: dict[str, dict[str, Any]] = {
    "alike": {},
    "another observer": {"observer": "percentile"},
    "fewer bits": {"bits": 4, "quant_min": -8, "quant_max": 7},
    "another range": {"quant_min": -127},
    "asymmetric": {"symmetric": False},
    "per channel": {"axis": 1},
    "another platform": {},
}
JOINED = ("alike", "another observer")


def read_by_all(folder: Path) -> tuple[ir.BaseGraph, core.TensorQuantizationConfig, Configs]:
    """A Relu whose output each of `READERS` reads: the graph, the configuration of the Relu, and theirs."""
    names = [reader.replace(" ", "_") for reader in READERS]
    nodes = [helper.make_node("Relu", ["x"], ["made"], name="maker")]
    nodes += [helper.make_node("Identity", ["made"], [f"{name}_out"], name=name) for name in names]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3])
        for name in ("x", *(f"{name}_out" for name in names))
    ]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), folder / "read.onnx")
    loaded = parser.OnnxParser().build(str(folder / "read.onnx"))
    replacer, configs = ir.QuantableGraph(ir.GraphReplacer(loaded)), {}
    platforms = core.TargetPlatform

    def quantize(name: str, where: core.TargetPlatform, inputs: Config, output: Config) -> None:
        whole = core.OperationQuantizationConfig([inputs], [output])
        replacer.quantize_operation(name, where, whole)

    def made(**settings: Any) -> Config:
        usual = {"bits": 8, "quant_min": -128, "quant_max": 127, "axis": None, "symmetric": True}
        return uniform_config(**(usual | settings))

    def floating() -> Config:
        found = made()
        found.state = core.QuantizationStates.FP32
        return found

    maker = made()
    quantize("maker", platforms.EXTENSION, floating(), maker)
    for reader, name in zip(READERS, names, strict=True):
        configs[reader] = made(**READERS[reader])
        where = platforms.PPL_CUDA_INT8 if reader == "another platform" else platforms.EXTENSION
        quantize(name, where, configs[reader], floating())
    return loaded, maker, configs


def test_ppq_s_pipeline_joins_a_reader_that_agrees_with_the_maker_and_no_other(tmp_path: Path) -> None:
    graph, maker, readers = read_by_all(tmp_path)
    ppq.quantization.optim.QuantizeSimplifyPass().optimize(graph=graph, dataloader=[], executor=None)
    joined = {name for name, found in readers.items() if found.state == core.QuantizationStates.OVERLAPPED}
    assert joined == {*JOINED}
    assert all((found.dominated_by is maker) == (name in JOINED) for name, found in readers.items())
    assert maker.state == core.QuantizationStates.INITIAL


def test_an_activation_is_quantized_once_where_they_agree_and_else_twice(tmp_path: Path) -> None:
    graph, maker, readers = read_by_all(tmp_path)
    ppq.quantization.optim.QuantizeSimplifyPass().optimize(graph=graph, dataloader=[], executor=None)
    scales = {"maker": 0.3, "another observer": 0.7, "per channel": [0.5, 0.7, 1.1]}
    for name, found in {"maker": maker, **readers}.items():
        if name in JOINED:
            continue  # it has no scale of its own: PPQ refuses to set one
        found.scale = torch.tensor(scales.get(name, 0.7))
        found.offset = torch.full_like(found.scale, 3.0 if name == "asymmetric" else 0.0)
        found.state = core.QuantizationStates.ACTIVATED
    x = torch.tensor([[0.4, 1.0, 2.3], [3.7, 5.2, 9.9]])
    running = executor.TorchExecutor(graph, device="cpu")
    outputs = dict(zip(readers, running.forward(x), strict=True))
    once = np.rint(x.numpy() / np.float32(0.3)) * np.float32(0.3)
    for name, found in readers.items():
        wanted = torch.from_numpy(once)
        assert torch.equal(outputs[name], wanted if name in JOINED else fake_quantize(wanted, found)), name
    assert sum(torch.equal(output, torch.from_numpy(once)) for output in outputs.values()) == len(JOINED)


def test_opsets_are_not_checked_unless_asked() -> None:
    assert not core.STRICT_OPSET_CHECKING
