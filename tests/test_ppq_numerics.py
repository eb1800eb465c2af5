"""What we rely on in PPQ, held to plain numpy, PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper
from ppq_config import config
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.evaluate.error_meter import per_image, sqnr_db
from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.ppq_compat import TensorObserverFactory, core, fake_quantize, ir, measure
from ptq2themoon.quantize.simulation import SimulatedModel

SCALES = st.floats(2**-20, 2**10, width=32)
VALUES = st.floats(-1e6, 1e6, width=32)


def observed(batches: Sequence[np.ndarray], settings: core.TensorQuantizationConfig) -> np.ndarray:
    """The scale that PPQ's observer finds."""
    watching = TensorObserverFactory.build_observer(ir.Variable("x"), settings)
    for batch in batches:
        watching.observe(torch.from_numpy(batch))
    watching.render_quantization_config()
    assert not settings.offset.any()
    return settings.scale.numpy()


# Quantize and dequantize --------------------------------------------------------------------------


def test_ties_go_to_even_and_the_range_is_clipped() -> None:
    values = torch.tensor(
        [0.25, 0.75, 1.25, 1.75, -0.25, -0.75, -1.25, 63.25, 63.75, 99.0, -63.75, -64.25, -99]
    )
    wanted = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0, -1.0, -1.0, 63.0, 63.5, 63.5, -64.0, -64.0, -64.0])
    assert torch.equal(fake_quantize(values, config(0.5)), wanted)


@given(st.integers(-127, 126), st.sampled_from([2.0**k for k in range(-12, 4)]))
def test_every_tie_goes_to_even(k: int, scale: float) -> None:
    quantized = fake_quantize(torch.tensor([(k + 0.5) * scale]), config(scale)).item() / scale
    assert quantized == round(k + 0.5)  # Python rounds half to even
    assert quantized % 2 == 0


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=6), elements=VALUES),
    SCALES,
    st.integers(2, 8),
)
def test_per_tensor_is_numpy_bit_for_bit(x: np.ndarray, scale: float, bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    wanted = np.clip(np.rint(x / np.float32(scale)), low, high) * np.float32(scale)
    before = x.copy()
    np.testing.assert_array_equal(
        fake_quantize(torch.from_numpy(x), config(scale, bits=bits)).numpy(), wanted
    )
    np.testing.assert_array_equal(x, before)  # never in place


@settings(max_examples=60)
@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
def test_per_channel_is_numpy_bit_for_bit_on_every_axis(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = data.draw(hnp.arrays(np.float32, shape, elements=VALUES))
    scales = data.draw(hnp.arrays(np.float32, shape[axis], elements=SCALES))
    wanted = np.empty_like(x)
    for channel, scale in enumerate(scales):
        at = (slice(None),) * axis + (channel,)
        wanted[at] = np.clip(np.rint(x[at] / scale), -128, 127) * scale
    np.testing.assert_array_equal(fake_quantize(torch.from_numpy(x), config(scales, axis)).numpy(), wanted)


def test_what_is_not_in_force_passes_unchanged() -> None:
    waiting, x = config(), torch.randn(3)
    assert fake_quantize(x, waiting) is x


def test_the_cpu_and_the_gpu_run_the_same_code() -> None:
    """PPQ's own CUDA kernels round and observe in code of their own; they stay off."""
    assert not core.PPQ_CONFIG.USING_CUDA_KERNEL


# Observers ----------------------------------------------------------------------------------------


def test_percentile_is_an_order_statistic_counted_down() -> None:
    """Of 20,000 values 99.99 % leaves out one on either side; of 10,000 or fewer none."""
    rng = np.random.default_rng(0)
    many = rng.permutation(20_000).astype(np.float32) - 5_000
    assert observed([many], config(observer="percentile", quantile=0.9999)) == np.float32(2 * 14_998 / 255)
    few = rng.permutation(10_000).astype(np.float32) - 7_000
    assert observed([few], config(observer="percentile", quantile=0.9999)) == np.float32(2 * 7_000 / 255)


@settings(max_examples=30)
@given(
    st.lists(hnp.arrays(np.float32, st.integers(1, 300), elements=VALUES), min_size=1, max_size=4),
    st.sampled_from([0.5, 0.9, 0.99, 0.9999, 1.0]),
    st.sampled_from([4, 8]),
)
def test_percentile_is_the_mean_over_batches_of_order_statistics(
    batches: list[np.ndarray], quantile: float, bits: int
) -> None:
    low, high = [], []
    for batch in batches:
        ordered, n = np.sort(batch), batch.size
        low.append(ordered[int(n * (1 - quantile))])
        high.append(ordered[min(int(n * quantile), n - 1)])
    largest = max(abs(min(np.mean(low), 0)), abs(max(np.mean(high), 0)))
    found = observed(batches, config(bits=bits, observer="percentile", quantile=quantile))
    assert found == pytest.approx(max(2 * largest / (2**bits - 1), 1e-8), rel=1e-5)


def test_percentile_defaults_to_the_study_s() -> None:
    batch = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    stated = observed([batch], config(observer="percentile", quantile=0.9999))
    assert observed([batch], config(observer="percentile")) == stated


@settings(max_examples=30)
@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), st.integers(1, 3))
def test_minmax_is_the_largest_over_all_batches(
    data: st.DataObject, shape: tuple[int, ...], count: int
) -> None:
    axis = data.draw(st.none() | st.integers(0, len(shape) - 1))
    batches = [data.draw(hnp.arrays(np.float32, shape, elements=VALUES)) for _ in range(count)]
    others = tuple(i for i in range(len(shape)) if i != axis) if axis is not None else None
    largest = np.max([np.abs(batch).max(axis=others) for batch in batches], axis=0)
    found = observed(batches, config(axis=axis))
    np.testing.assert_allclose(found, np.maximum(2 * largest / 255, 1e-8), rtol=1e-6)


def test_a_tensor_of_zeros_gets_the_smallest_scale() -> None:
    assert observed([np.zeros(5, np.float32)], config(observer="percentile")) == np.float32(1e-8)


# The executor's operators -------------------------------------------------------------------------

RNG = np.random.default_rng(7)
TOKENS = RNG.standard_normal((2, 5, 6)).astype(np.float32) * 3
PIXELS = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
ROWS = RNG.standard_normal((4, 6)).astype(np.float32)


def parameter(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def single(
    op_type: str, x: np.ndarray, parameters: list[np.ndarray], **attributes: object
) -> onnx.ModelProto:
    """A model of one operator, its input `x` and the other inputs constant."""
    names = [f"p{i}" for i in range(len(parameters))]
    node = helper.make_node(op_type, ["x", *names], ["y"], name="one", **attributes)
    return model_of([node], x, dict(zip(names, parameters, strict=True)))


def model_of(nodes: list[onnx.NodeProto], x: np.ndarray, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cast_and_back() -> onnx.ModelProto:
    """PPQ reads the type of a Cast in `onnx.mapping`, long after its import."""
    cast = helper.make_node("Cast", ["x"], ["i"], name="cast", to=onnx.TensorProto.INT64)
    back = helper.make_node("Cast", ["i"], ["y"], name="back", to=onnx.TensorProto.FLOAT)
    return model_of([cast, back], TOKENS, {})


def mean_twice() -> onnx.ModelProto:
    """PPQ reads axes as an attribute; since opset 18 they are an input, which two operators may share."""
    names = [("x", "m", "first"), ("m", "y", "second")]
    nodes = [helper.make_node("ReduceMean", [a, "axes"], [b], name=c, keepdims=1) for a, b, c in names]
    return model_of(nodes, TOKENS, {"axes": np.array([1])})


def fused_matmul(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["b", "xw"], ["y"])]
    model, fusions = fuse(model_of(nodes, TOKENS, {"w": weight, "b": bias}))
    assert [fusion.kind for fusion in fusions] == ["MatMul+Add"]
    assert [node.op_type for node in model.graph.node] == ["PPQBiasFusedMatMul"]
    return model


GAMMA, BETA, WEIGHT, BIAS, KERNEL = (
    parameter(6),
    parameter(6),
    parameter(6, 4),
    parameter(4),
    parameter(4, 3, 4, 4),
)
X, P = torch.from_numpy(TOKENS), torch.from_numpy
OPERATORS = {
    "LayerNormalization": (
        single("LayerNormalization", TOKENS, [GAMMA, BETA], axis=-1, epsilon=1e-6),
        TOKENS,
        F.layer_norm(X, (6,), P(GAMMA), P(BETA), eps=1e-6),
    ),
    "Gelu": (single("Gelu", TOKENS, [], approximate="none"), TOKENS, F.gelu(X)),
    "Softmax": (single("Softmax", TOKENS, [], axis=-1), TOKENS, F.softmax(X, dim=-1)),
    "PPQBiasFusedMatMul": (fused_matmul(WEIGHT, BIAS), TOKENS, F.linear(X, P(WEIGHT).T, P(BIAS))),
    "Gemm": (single("Gemm", ROWS, [WEIGHT, BIAS]), ROWS, P(ROWS) @ P(WEIGHT) + P(BIAS)),
    "Gemm, transposed": (
        single("Gemm", ROWS, [WEIGHT.T.copy(), BIAS], transB=1),
        ROWS,
        F.linear(P(ROWS), P(WEIGHT).T, P(BIAS)),
    ),
    "Conv": (
        single("Conv", PIXELS, [KERNEL, BIAS], kernel_shape=[4, 4], strides=[4, 4]),
        PIXELS,
        F.conv2d(P(PIXELS), P(KERNEL), P(BIAS), stride=4),
    ),
    "ReduceMean": (mean_twice(), TOKENS, X.mean(1, keepdim=True)),
    "Cast": (cast_and_back(), TOKENS, X.trunc()),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_pytorch_s_and_onnx_runtime_s(name: str, tmp_path: Path) -> None:
    model, x, wanted = OPERATORS[name]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "one.onnx")
    found = SimulatedModel(onnx.load(tmp_path / "one.onnx"), "cpu")(torch.from_numpy(x))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.numpy(), run_onnx(model, x), rtol=1e-5, atol=1e-5)


# What PPQ calls SNR -------------------------------------------------------------------------------


def noisy(amount: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(5, 4, 6, generator=generator)
    return reference + amount * torch.randn(5, 4, 6, generator=generator), reference


@pytest.mark.parametrize("amount", [0.001, 0.1, 2.0])
def test_nsr_is_what_ppq_calls_snr(amount: float) -> None:
    q, f = noisy(amount)
    torch.testing.assert_close(
        per_image(q, f)["nsr"].float(), measure.torch_snr_error(q, f, reduction="none"), rtol=1e-5, atol=0
    )
    assert per_image(q, f)["nsr"].mean().item() == pytest.approx(
        measure.torch_snr_error(q, f).item(), rel=1e-5
    )


def test_more_noise_is_a_larger_nsr_and_fewer_decibels() -> None:
    nsr = [per_image(*noisy(amount))["nsr"].mean().item() for amount in (0.001, 0.01, 0.1, 1.0)]
    assert nsr == sorted(nsr)
    decibels = [sqnr_db(value) for value in nsr]
    assert decibels == sorted(decibels, reverse=True)
    assert decibels[0] - decibels[1] == pytest.approx(20, abs=0.01)  # ten times the noise, 20 dB
