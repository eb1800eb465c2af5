"""Kinds of quantizers: PPQ's bits, plain formulas, and gradients that finite differences confirm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ptq2themoon.ppq_compat import core, uniform_config
from ptq2themoon.ppq_compat import fake_quantize as ppq_fake_quantize
from ptq2themoon.quantize.quantizers import LogSqrt2, Quantizer, Uniform
from ptq2themoon.quantize.quantizers.adalog import AdaLog
from ptq2themoon.quantize.quantizers.apot import APoT
from ptq2themoon.quantize.quantizers.base_levels import Levels
from ptq2themoon.quantize.quantizers.base_powers import Powers
from ptq2themoon.quantize.quantizers.log2 import Log2
from ptq2themoon.quantize.quantizers.power_of_two import PowerOfTwo
from ptq2themoon.vocabulary.recipes import TensorSpec

CHANNELS = 3
FLOATS = st.floats(-1e4, 1e4, width=32)
VALUES = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(CHANNELS)), elements=FLOATS)
SHARES = hnp.arrays(np.float32, st.tuples(st.integers(1, 40)), elements=st.floats(0, 1, width=32))


def spec(bits: int = 8, symmetry: str = "symmetric", codes: str = "signed", **more: Any) -> TensorSpec:
    return TensorSpec(True, bits, "per-tensor", "minmax", 100.0, "input", "uniform", symmetry, codes, **more)


@st.composite
def uniform(draw: st.DrawFn, symmetry: tuple[str, ...] = ("symmetric", "asymmetric")) -> Uniform:
    """Per tensor or along axis 1, of any range; unsigned symmetric ones of values from 0 up."""
    chosen = spec(
        draw(st.integers(2, 16)),
        draw(st.sampled_from(symmetry)),
        draw(st.sampled_from(("signed", "unsigned"))),
    )
    axis = draw(st.sampled_from((None, 1)))
    ends = draw(hnp.arrays(np.float32, (2, CHANNELS), elements=FLOATS))
    low, high = torch.from_numpy(np.sort(ends, axis=0))
    if (chosen.symmetry, chosen.codes) == ("symmetric", "unsigned"):
        low = torch.zeros_like(high)
    return Uniform.from_range(*((low, high) if axis == 1 else (low.min(), high.max())), chosen, axis)


# Uniform --------------------------------------------------------------------------------------------


def by_ppq(quantizer: Uniform, value: Tensor) -> Tensor:
    bounds = quantizer.quant_min, quantizer.quant_max
    config = uniform_config(quantizer.bits, *bounds, quantizer.axis, symmetric=quantizer.symmetric)
    config.scale, config.offset = quantizer.scale, quantizer.zero_point
    config.state = core.QuantizationStates.ACTIVATED
    return ppq_fake_quantize(value, config)


def by_numpy(quantizer: Uniform, value: np.ndarray) -> np.ndarray:
    """The definition, with its zero point added and subtracted; the channels are last."""
    scale, zero_point = quantizer.scale.numpy(), quantizer.zero_point.numpy()
    codes = np.clip(np.rint(value / scale) + zero_point, quantizer.quant_min, quantizer.quant_max)
    return (codes - zero_point) * scale


@settings(deadline=None)
@given(uniform(), VALUES)
def test_uniform_is_ppq_and_numpy_to_the_bit(quantizer: Uniform, value: np.ndarray) -> None:
    found = quantizer(torch.from_numpy(value))
    assert torch.equal(found, by_ppq(quantizer, torch.from_numpy(value)))
    wanted = by_numpy(quantizer, value)
    assert wanted.dtype == np.float32
    assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("codes", ["signed", "unsigned"])
def test_an_axis_may_be_any(axis: int | None, codes: str) -> None:
    value = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)) + 1
    others = [i for i in range(3) if i != axis]
    low, high = value.amin(others if axis is not None else [0, 1, 2]), value.amax(others)
    if axis is None:
        low, high = value.min(), value.max()
    quantizer = Uniform.from_range(low, high, spec(4, "asymmetric", codes), axis)
    assert not quantizer.symmetric
    assert torch.equal(quantizer(value), by_ppq(quantizer, value))


@settings(deadline=None)
@given(uniform(), VALUES)
def test_uniform_rounds_to_the_nearest_value_and_clips_the_rest(
    quantizer: Uniform, value: np.ndarray
) -> None:
    scale = quantizer.scale.double().numpy()
    steps = value.astype(np.float64) / scale
    off = np.abs(quantizer(torch.from_numpy(value)).double().numpy() / scale - steps)
    low, high = quantizer.lowest.numpy(), quantizer.highest.numpy()
    inside = (low <= steps) & (steps <= high)
    rounding = np.abs(steps) * 2.0**-22  # of float32, in steps
    assert (off <= 0.5 + rounding)[inside].all()
    clipped = np.where(steps < low, low - steps, steps - high)
    assert (np.abs(off - clipped) <= 1e-3 + rounding)[~inside].all()


@settings(deadline=None)
@given(uniform(), VALUES)
def test_uniform_twice_is_once_zero_stays_and_order_too(quantizer: Uniform, value: np.ndarray) -> None:
    once = quantizer(torch.from_numpy(value))
    assert torch.equal(quantizer(once), once)
    assert not quantizer(torch.zeros(2, CHANNELS)).any()
    ordered = quantizer(torch.from_numpy(np.sort(value, axis=0)))
    assert (ordered.diff(dim=0) >= 0).all()


@settings(deadline=None)
@given(uniform(("asymmetric",)))
def test_an_asymmetric_range_is_covered_to_a_step(quantizer: Uniform) -> None:
    """The zero point is a whole number within the codes, so that 0 has a code of its own."""
    point = quantizer.zero_point
    assert torch.equal(point, point.round())
    assert ((quantizer.quant_min <= point) & (point <= quantizer.quant_max)).all()


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(2, 16))
def test_the_ends_of_an_asymmetric_range_lose_half_a_step(one: float, other: float, bits: int) -> None:
    low, high = torch.tensor(sorted((one, other)))
    quantizer = Uniform.from_range(low, high, spec(bits, "asymmetric", "unsigned"), None)
    ends = torch.stack([low.clamp(max=0), high.clamp(min=0)])
    step = quantizer.scale
    assert ((quantizer(ends) - ends).abs() <= step * (0.5 + 1e-3) + 1e-8).all()
    assert step == pytest.approx(max(float(ends[1] - ends[0]) / (2**bits - 1), 1e-8), rel=1e-6)


def test_signed_and_unsigned_codes_give_the_same_values_of_an_asymmetric_range() -> None:
    value, ends = torch.linspace(-1, 3, 1001), (torch.tensor(-0.7), torch.tensor(2.9))
    signed, unsigned = (
        Uniform.from_range(*ends, spec(8, "asymmetric", c), None) for c in ("signed", "unsigned")
    )
    assert torch.equal(signed(value), unsigned(value))
    assert (signed.zero_point, unsigned.zero_point) == (50 - 128, 50)


def test_unsigned_codes_of_values_from_0_up_have_half_the_step() -> None:
    signed, unsigned = (
        Uniform.from_range(torch.tensor(0.0), torch.tensor(1.0), spec(8, codes=codes), None)
        for codes in ("signed", "unsigned")
    )
    assert (signed.scale, unsigned.scale) == (torch.tensor(2 / 255), torch.tensor(1 / 255))
    assert unsigned.symmetric


def test_values_below_0_have_no_unsigned_code_without_a_zero_point() -> None:
    low, high = torch.tensor([0.0, -0.5]), torch.tensor([1.0, 1.0])
    with pytest.raises(ValueError, match=r"^values below 0 \(least -0\.5\) have no unsigned code"):
        Uniform.from_range(low, high, spec(codes="unsigned"), 1)


def test_in_place_overwrites_and_a_call_does_not() -> None:
    quantizer = Uniform.from_range(torch.tensor(-1.0), torch.tensor(2.0), spec(4, "asymmetric"), None)
    value = torch.linspace(-2, 3, 50)
    before = value.clone()
    found = quantizer(value)
    assert torch.equal(value, before)
    assert torch.equal(quantizer.in_place(value), found)
    assert torch.equal(value, found)


# log_sqrt2 ------------------------------------------------------------------------------------------


def log_by_numpy(value: np.ndarray, scale: float, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The formula in float64, and which values lie on the edge of two codes in float32."""
    positive = np.maximum(value.astype(np.float64), 0) / scale
    with np.errstate(divide="ignore"):
        exact = -2 * np.log2(positive)
    codes = np.maximum(np.rint(exact), 0)
    kept = codes < 2**bits
    codes = np.where(kept, codes, 0)
    powers = 2.0 ** -np.ceil(codes / 2) * np.where(codes % 2 == 1, np.sqrt(2), 1)
    finite = np.where(np.isfinite(exact), exact, 0)
    edge = np.abs(finite - np.floor(finite) - 0.5) < 1e-4
    return np.where(kept, scale * powers, 0), edge


@settings(deadline=None)
@given(SHARES, st.floats(2.0**-10, 2.0**10, width=32), st.integers(2, 8))
def test_log_sqrt2_is_its_formula(shares: np.ndarray, scale: float, bits: int) -> None:
    value = shares * np.float32(1.5 * scale) - np.float32(0.1 * scale)  # below 0, and above the scale
    quantizer = LogSqrt2(torch.tensor(scale), bits)
    wanted, edge = log_by_numpy(value, scale, bits)
    found = quantizer(torch.from_numpy(value)).numpy()
    np.testing.assert_allclose(found[~edge], wanted[~edge], rtol=1e-6, atol=0)
    assert (found[value <= 0] == 0).all()
    assert (found[value >= scale] == np.float32(scale)).all()


def test_log_sqrt2_by_hand() -> None:
    quantizer = LogSqrt2(torch.tensor(1.0), 3)
    root = 2**0.5
    pairs = [
        (1.0, 1.0), (3.0, 1.0), (0.9, 1.0), (0.8, root / 2), (0.5, 0.5), (0.36, root / 4),
        (2**-3.5, 2**-3.5),  # code 7, the last of 3 bits
        (2**-4.0, 0.0), (2**-3.7, 2**-3.5), (2**-3.8, 0.0),
        (0.0, 0.0), (-0.0, 0.0), (-0.3, 0.0), (-1e30, 0.0), (1e-45, 0.0), (1e-38, 0.0),
        (float("inf"), 1.0), (float("-inf"), 0.0),
    ]  # fmt: skip
    value, wanted = (torch.tensor(each) for each in zip(*pairs, strict=True))
    torch.testing.assert_close(quantizer(value), wanted, rtol=1e-6, atol=0)
    assert quantizer(torch.tensor(float("nan"))).isnan()


def test_what_underflows_beside_the_scale_is_0() -> None:
    value = torch.tensor([1e-45, 1e-30, 1.0])
    assert LogSqrt2(torch.tensor(1e20), 8)(value).tolist()[:2] == [0, 0]
    assert LogSqrt2(torch.tensor(1e20), 8)(value)[2] == pytest.approx(1, rel=0.2)


@settings(deadline=None)
@given(SHARES, st.integers(2, 8))
def test_log_sqrt2_twice_is_once_and_order_stays(shares: np.ndarray, bits: int) -> None:
    quantizer = LogSqrt2(torch.tensor(0.7), bits)
    once = quantizer(torch.from_numpy(shares))
    assert torch.equal(quantizer(once), once)
    assert (quantizer(torch.from_numpy(np.sort(shares))).diff() >= 0).all()


def test_log_sqrt2_from_a_range() -> None:
    chosen = TensorSpec(True, 4, "per-tensor", "minmax", 100.0, "input", "log_sqrt2")
    quantizer = LogSqrt2.from_range(torch.tensor(0.0), torch.tensor(0.6), chosen, None)
    assert (quantizer.scale, quantizer.bits, quantizer.axis) == (torch.tensor(0.6), 4, None)
    assert LogSqrt2.from_range(torch.zeros(()), torch.zeros(()), chosen, None).scale == torch.tensor(1e-8)
    with pytest.raises(ValueError, match=r"^values below 0 \(least -0\.1\) have no logarithm; use kind unif"):
        LogSqrt2.from_range(torch.tensor(-0.1), torch.tensor(0.6), chosen, None)


@settings(deadline=None)
@given(SHARES, st.floats(2.0**-10, 2.0**10, width=32), st.integers(2, 8))
def test_log2_is_its_formula(shares: np.ndarray, scale: float, bits: int) -> None:
    value = shares * np.float32(1.5 * scale) - np.float32(0.1 * scale)
    with np.errstate(divide="ignore"):
        exact = -np.log2(np.maximum(value.astype(np.float64), 0) / scale)
    codes = np.maximum(np.rint(exact), 0)
    wanted = np.where(codes < 2**bits, scale * 2.0**-codes, 0)
    finite = np.where(np.isfinite(exact), exact, 0)
    edge = np.abs(finite - np.floor(finite) - 0.5) < 1e-4
    quantizer = Log2(torch.tensor(scale), bits)
    found = quantizer(torch.from_numpy(value))
    np.testing.assert_allclose(found.numpy()[~edge], wanted[~edge], rtol=1e-6, atol=0)
    assert torch.equal(quantizer(found), found)
    assert torch.equal(quantizer.straight_through(torch.from_numpy(value)), found)
    assert Log2.from_settings(bits, None, quantizer.settings(), quantizer.arrays()) == quantizer
    assert quantizer != LogSqrt2(torch.tensor(scale), bits)


@settings(deadline=None)
@given(SHARES, st.floats(2.0**-10, 2.0**10, width=32), st.integers(2, 8), st.integers(10, 148))
def test_adalog_is_its_formula(shares: np.ndarray, scale: float, bits: int, q: int) -> None:
    value = shares * np.float32(1.5 * scale) - np.float32(0.1 * scale)
    with np.errstate(divide="ignore"):
        exact = -37 / q * np.log2(np.maximum(value.astype(np.float64), 0) / scale)
    codes = np.maximum(np.rint(exact), 0)
    kept = codes < 2**bits
    whole, grid = np.where(kept, codes, 0).astype(int), max(2 ** (bits + 1) - 2, 14)
    table = np.rint(2.0 ** -(whole * q % 37 / 37) * grid) / grid
    wanted = np.where(kept, scale * 2.0 ** -(whole * q // 37) * table, 0)
    finite = np.where(np.isfinite(exact), exact, 0)
    edge = np.abs(finite - np.floor(finite) - 0.5) < 1e-3
    quantizer = AdaLog(torch.tensor(scale), bits, q)
    tensor = torch.from_numpy(value)
    found = quantizer(tensor)
    np.testing.assert_allclose(found.numpy()[~edge], wanted[~edge], rtol=1e-6, atol=1e-42)
    assert torch.equal(quantizer(found), found)
    assert torch.equal(quantizer.straight_through(tensor), found)
    assert (quantizer(torch.from_numpy(np.sort(value))).diff() >= 0).all()
    again = AdaLog.from_settings(bits, None, quantizer.settings(), quantizer.arrays())
    assert again == quantizer
    assert AdaLog(torch.tensor(scale), bits, q + 1) != quantizer


@pytest.mark.parametrize("q", [True, 9, 149, 20.5, None])
def test_adalog_refuses_a_q_that_is_none(q: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 10 to 148"):
        AdaLog.from_settings(4, None, {"q": q}, {"scale": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="kind adalog has q and one scale, not nothing"):
        AdaLog.from_settings(4, None, {}, {"scale": torch.tensor(1.0)})


# Levels ---------------------------------------------------------------------------------------------

LEVELS = pytest.mark.parametrize("kind", [PowerOfTwo, APoT])


@st.composite
def levels(draw: st.DrawFn) -> Levels:
    """Per tensor or along axis 1."""
    kind, bits = draw(st.sampled_from((PowerOfTwo, APoT))), draw(st.integers(2, 8))
    axis = draw(st.sampled_from((None, 1)))
    scales = draw(hnp.arrays(np.float32, CHANNELS, elements=st.floats(2.0**-10, 2.0**10, width=32)))
    return kind(torch.from_numpy(scales) if axis == 1 else torch.tensor(scales[0]), bits, axis)


def test_levels_of_four_bits_by_hand() -> None:
    powers = [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    found = PowerOfTwo(torch.tensor(1.0), 4, None).levels()
    assert sorted(found[found >= 0].tolist()) == sorted([0, 1 / 64, *powers])
    sums = [a + b for a in (0, 1 / 2, 1 / 4, 1 / 16) for b in (0, 1 / 8)]  # the paper's code, for 3 bits
    found = APoT(torch.tensor(1.0), 4, None).levels()
    torch.testing.assert_close(found[found >= 0], torch.tensor(sorted(sums)) / max(sums))
    five = [a + b for a in (0, 1 / 2, 1 / 8, 1 / 32) for b in (0, 1 / 4, 1 / 16, 1 / 64)]
    found = APoT(torch.tensor(1.0), 5, None).levels()
    torch.testing.assert_close(found[found >= 0], torch.tensor(sorted(five)) / max(five))


@LEVELS
@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_as_many_as_codes(kind: type[Levels], bits: int) -> None:
    found = kind(torch.tensor(1.0), bits, None).levels()
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == 2**bits - 1
    assert torch.equal(found, -found.flip(0))
    assert found.max() == 1


@settings(deadline=None)
@given(levels(), VALUES)
def test_levels_are_the_nearest_ones(quantizer: Levels, value: np.ndarray) -> None:
    tensor = torch.from_numpy(value)
    once = quantizer(tensor)
    scale, grid = quantizer.scale.double().numpy(), quantizer.levels().double().numpy()
    share = value.astype(np.float64) / scale
    off = np.abs(once.double().numpy() / scale - share)
    least = np.abs(share[..., None] - grid).min(-1)
    assert (off <= least + 1e-6 * (1 + np.abs(share))).all()
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)
    assert torch.equal(quantizer.straight_through(tensor), once)
    again = type(quantizer).from_settings(
        quantizer.bits, quantizer.axis, quantizer.settings(), quantizer.arrays()
    )
    assert again == quantizer
    assert torch.equal(again(tensor), once)
    assert (quantizer(torch.from_numpy(np.sort(value, axis=0))).diff(dim=0) >= 0).all()


@LEVELS
def test_levels_from_a_range_reach_its_largest_magnitude(kind: type[Levels]) -> None:
    found = kind.from_range(torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 0.0]), spec(4), 0)
    assert found.scale.tolist() == [2.0, pytest.approx(1e-8)]
    assert found.bits == 4
    with pytest.raises(ValueError, match="has a scale and nothing else, not quant_min"):
        kind.from_settings(4, None, {"quant_min": 0}, {"scale": torch.tensor(1.0)})


# Gradients ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(uniform(), VALUES)
def test_straight_through_gives_the_bits_of_a_call(quantizer: Uniform, value: np.ndarray) -> None:
    tensor = torch.from_numpy(value)
    assert torch.equal(quantizer.straight_through(tensor), quantizer(tensor))


@settings(deadline=None)
@given(SHARES, st.integers(2, 8))
def test_straight_through_of_log_sqrt2_gives_the_bits_of_a_call(shares: np.ndarray, bits: int) -> None:
    value = torch.from_numpy(shares * np.float32(1.2) - np.float32(0.1))
    quantizer = LogSqrt2(torch.tensor(0.7), bits)
    assert torch.equal(quantizer.straight_through(value), quantizer(value))


def differences(function: Any, arguments: list[Tensor], step: float = 1e-6) -> list[Tensor]:
    """Central finite differences of the sum of a function, by each element of each argument."""
    found = []
    for argument in arguments:
        slopes = torch.zeros_like(argument)
        flat, into = argument.view(-1), slopes.view(-1)
        for i in range(flat.numel()):
            kept = flat[i].item()
            flat[i] = kept + step
            above = function(*arguments).sum()
            flat[i] = kept - step
            below = function(*arguments).sum()
            flat[i] = kept
            into[i] = (above - below) / (2 * step)
        found.append(slopes)
    return found


def assert_gradients(quantizer: Quantizer, value: Tensor, surrogate: Any, arrays: list[str]) -> list[Tensor]:
    """Of straight_through, by value and arrays in float64, equal to the surrogate's differences."""
    leaves = [value, *(getattr(quantizer, name) for name in arrays)]
    wanted = differences(surrogate, [leaf.clone() for leaf in leaves])
    for leaf in leaves:
        leaf.requires_grad_()
    out = quantizer.straight_through(value)
    torch.testing.assert_close(out, surrogate(*leaves), rtol=1e-6, atol=1e-12)
    found = torch.autograd.grad(out.sum(), leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    return list(found)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(("symmetry", "codes"), [("symmetric", "signed"), ("asymmetric", "unsigned")])
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_of_uniform_are_those_of_rounding_as_the_identity(
    axis: int | None, symmetry: str, codes: str, bits: int
) -> None:
    generator = torch.Generator().manual_seed(bits)
    value = torch.randn(3, 40, generator=generator, dtype=torch.float64) + 0.3
    low, high = (torch.full((value.shape[axis],) if axis is not None else (), end) for end in (-0.8, 1.1))
    made = Uniform.from_range(low, high, spec(bits, symmetry, codes), axis)
    scale = made.scale.double() * (1 + 0.1 * torch.rand(made.scale.shape, generator=generator).double())
    point = made.zero_point.double()

    def shaped(array: Tensor) -> Tensor:
        return array if not array.ndim else array.reshape([-1 if i == axis else 1 for i in range(2)])

    # What rounding adds stays as it is; on a clip's very edge there is no slope.
    left = (value / shaped(scale)).round() - value / shaped(scale)
    bounds = [bound - shaped(point) for bound in (made.quant_min, made.quant_max)]
    steps = (value / shaped(scale)).round()
    edge = (steps == bounds[0]) | (steps == bounds[1])
    value = torch.where(edge, torch.zeros(()).double(), value)
    left = torch.where(edge, torch.zeros(()).double(), left)
    assert not any((bound == 0).any() for bound in bounds)  # so that 0 lies on no edge

    def surrogate(value: Tensor, scale: Tensor, point: Tensor) -> Tensor:
        s, z = shaped(scale), shaped(point)
        return torch.clamp(value / s + left, made.quant_min - z, made.quant_max - z) * s

    quantizer = Uniform(scale, point, bits, made.quant_min, made.quant_max, axis)
    by_value, by_scale, by_point = assert_gradients(quantizer, value, surrogate, ["scale", "zero_point"])
    assert set(by_value.unique().tolist()) <= {0.0, 1.0}
    assert 0 < by_value.mean() < 1  # some are clipped and some are not
    assert by_scale.abs().max() > 0
    assert by_point.abs().max() > 0


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", [LogSqrt2, Log2])
def test_gradients_of_powers_are_those_of_rounding_as_the_identity(kind: type[Powers], bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    value = torch.rand(60, generator=generator, dtype=torch.float64).square() * 1.5 - 0.05
    scale = torch.tensor(0.6, dtype=torch.float64)
    dense = kind(scale, bits).codes_per_octave
    exact = -dense * torch.log2(value.clamp(min=1e-30) / scale)
    value = value[(exact.round() != 0) & (value != 0)]  # code 0 is a clip's very edge
    exact = -dense * torch.log2(value.clamp(min=1e-30) / scale)
    left, kept = exact.round() - exact, (exact.round() < 2**bits) & (value > 0)

    def surrogate(value: Tensor, scale: Tensor) -> Tensor:
        codes = (-dense * torch.log2(value.clamp(min=1e-30) / scale) + left).clamp(min=0)
        return torch.where(kept, scale * torch.exp2(-codes / dense), 0.0)

    by_value, by_scale = assert_gradients(kind(scale, bits), value, surrogate, ["scale"])
    assert (by_value[~kept] == 0).all()
    clipped = value > scale * 2 ** (0.5 / dense)
    assert (by_value[clipped] == 0).all()
    assert by_scale.item() == pytest.approx(int(clipped.sum()))
    assert (by_value[kept & ~clipped] > 0).all()


@LEVELS
@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_of_levels_are_those_of_the_choice_as_the_identity(
    kind: type[Levels], axis: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    scale = torch.tensor(0.9, dtype=torch.float64) if axis is None else torch.tensor([0.6, 0.9, 1.3]).double()
    quantizer = kind(scale, 4, axis)
    left = quantizer(value) / scale - value / scale
    inside = value.abs() < scale

    def surrogate(value: Tensor, scale: Tensor) -> Tensor:
        return torch.where(inside, value / scale + left, value.sign()) * scale

    by_value, by_scale = assert_gradients(quantizer, value, surrogate, ["scale"])
    assert torch.equal(by_value, inside.double())
    assert by_scale.abs().min() > 0


def test_gradients_of_adalog_are_those_of_its_logarithm() -> None:
    """Of scale * 2^(-code q / 37); the grid of its table has no slope."""
    value = torch.tensor([0.9, 0.31, 0.05, 0.004, 2.0, 1e-9], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    quantizer = AdaLog(scale, 4, 30)
    by_value, by_scale = torch.autograd.grad(quantizer.straight_through(value).sum(), [value, scale])
    codes = (-37 / 30 * value.detach().log2()).round()
    smooth = torch.exp2(-codes * 30 / 37)
    kept = (codes >= 0) & (codes < 16)
    torch.testing.assert_close(by_value, torch.where(kept, smooth / value, 0.0).detach())
    assert kept.tolist() == [True, True, True, True, False, False]
    assert by_scale == pytest.approx(1.0)  # of the value above the scale alone


# Equality -------------------------------------------------------------------------------------------


def test_quantizers_are_equal_where_their_grids_are() -> None:
    def made(scale: Any, point: Any = 0.0, bits: int = 8, axis: int | None = None) -> Uniform:
        top = 1 << (bits - 1)
        scale = torch.tensor(scale)
        return Uniform(scale, torch.tensor(point).expand(scale.shape).clone(), bits, -top, top - 1, axis)

    assert made(0.1) == made(0.1)
    assert hash(made(0.1)) == hash(made(0.1))
    assert made([0.1, 0.2], axis=1) == made([0.1, 0.2], axis=1)
    different = [
        made(0.1), made(0.2), made(0.1, 3.0), made(0.1, bits=4), made([0.1, 0.1], axis=1),
        made([0.1, 0.1], axis=2), made([0.1, 0.2], axis=1), made([0.1, 0.1], [0.0, 1.0], axis=1),
        Uniform(torch.tensor(0.1), torch.tensor(0.0), 8, 0, 255, None),
        LogSqrt2(torch.tensor(0.1), 8), LogSqrt2(torch.tensor(0.2), 8), LogSqrt2(torch.tensor(0.1), 4),
    ]  # fmt: skip
    for i, one in enumerate(different):
        assert [one == other for other in different] == [i == j for j in range(len(different))]
    assert made(0.1) != 0.1


@settings(deadline=None)
@given(uniform(), uniform(), VALUES)
def test_equal_quantizers_give_equal_values(one: Uniform, other: Uniform, value: np.ndarray) -> None:
    settings = one.settings() | {}
    again = Uniform.from_settings(one.bits, one.axis, settings, one.arrays())
    assert again == one
    assert torch.equal(again(torch.from_numpy(value)), one(torch.from_numpy(value)))
    if one == other:
        assert torch.equal(other(torch.from_numpy(value)), one(torch.from_numpy(value)))


def test_moved_values_stay_on_a_grid_of_the_whole_tensor_alone() -> None:
    zeros = torch.zeros(())
    assert Uniform(torch.tensor(0.1), zeros, 8, -128, 127, None).kept_by_moving
    assert not Uniform(torch.tensor([0.1, 0.2]), torch.zeros(2), 8, -128, 127, 1).kept_by_moving
    assert LogSqrt2(torch.tensor(0.1), 8).kept_by_moving
