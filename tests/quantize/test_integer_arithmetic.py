"""LayerNorm and softmax on integers: to the bit as Python's whole numbers have it, and near the real ones."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ptq2themoon.quantize.integer_arithmetic import (
    ExponentialConstants,
    IntegerLayerNorm,
    IntegerSoftmax,
    described,
    integer_exponentials,
    multiplier,
    read,
    rounded_log2,
)

LN2 = math.log(2)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


# LayerNorm ------------------------------------------------------------------------------------------


def layernorm(x: list[int], gamma: list[float], beta: list[float], step: float) -> list[int]:
    """Of one token, from the equations; real numbers where these have them."""
    count, total = len(x), sum(x)
    root = max(math.isqrt(count * sum(v * v for v in x) - total**2), 1)
    out = []
    for v, g, b in zip(x, gamma, beta, strict=True):
        factor = g * count / (root * step)
        n = 31 if factor == 0 else min(max(7 - math.floor(math.log2(abs(factor))), 0), 31)
        m = min(math.floor(abs(factor) * 2**n), 255)
        offset = round((b - g * total / root) / step * 2**n)
        signed = -m if factor < 0 else m
        out.append(half_up(Fraction(signed * v + offset, 2**n)))
    return out


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("step", [0.5, 0.03, 0.0007])
def test_layernorm_has_the_codes_of_the_equations(bits: int, step: float) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 7, 24), generator=generator)
    factors = 2 ** torch.randint(0, 4, (24,), generator=generator)
    factors[0] = 1
    gamma = torch.randn(24, generator=generator)
    gamma[3], gamma[4] = 0, 1e-12
    beta = torch.randn(24, generator=generator)
    scale = 0.013 * factors.float()
    found = IntegerLayerNorm(step)([codes * scale, gamma, beta], scale, 2)
    shifted = (codes * factors).flatten(0, 1).tolist()
    wanted = [layernorm(row, gamma.tolist(), beta.tolist(), step) for row in shifted]
    assert torch.equal(found.flatten(0, 1), torch.tensor(wanted).float() * step)


def test_layernorm_of_one_value_everywhere_is_beta() -> None:
    found = IntegerLayerNorm(0.25)(
        [torch.full((1, 2, 8), 0.6), torch.ones(8), torch.ones(8)], torch.tensor(0.1), None
    )
    assert torch.equal(found, torch.ones(1, 2, 8))


def test_layernorm_without_beta() -> None:
    x, scale = torch.randn(3, 5, 8).div(0.1).round() * 0.1, torch.tensor(0.1)
    values: list[Any] = [x, torch.ones(8)]
    with_zeros = IntegerLayerNorm(0.01)([*values, torch.zeros(8)], scale, None)
    assert torch.equal(IntegerLayerNorm(0.01)(values, scale, None), with_zeros)


def test_layernorm_is_near_the_real_one() -> None:
    """M has 8 bits and is rounded down: a gain at most one part in 128 too small, and half a step."""
    x, scale = torch.randn(4, 16, 64).div(0.02).round() * 0.02, torch.tensor(0.02)
    gamma, beta, step = torch.rand(64) + 0.5, torch.randn(64), 0.02
    found = IntegerLayerNorm(step)([x, gamma, beta], scale, None)
    wanted = torch.nn.functional.layer_norm(x, (64,), gamma, beta)
    a = gamma / x.std(-1, keepdim=True, correction=0)
    assert ((found - wanted).abs() <= a * x.abs() / 128 + 0.52 * step).all()
    assert (found - wanted).abs().mean() > 0


def test_a_multiplier_has_eight_bits_and_is_at_most_the_factor() -> None:
    factor = torch.logspace(-12, 3, 4001, dtype=torch.float64)
    m, power = multiplier(factor)
    assert m.max() <= 255
    assert ((m / power <= factor) | (m == 255)).all()
    inside = (factor >= 2.0**-24) & (factor < 256)
    assert (m[inside] >= 128).all()
    assert ((factor - m / power)[inside] < factor[inside] / 128).all()


# Softmax --------------------------------------------------------------------------------------------


def softmax(x: list[int], scale: float, bits: int) -> list[float]:
    """Of one row, from the equations."""
    left = 0
    while scale / 2**left > LN2:
        left += 1
    unit = scale / 2**left
    ln2, offset, constant = (
        math.floor(LN2 / unit),
        math.floor(1.353 / unit),
        math.floor(0.344 / 0.3585 / unit**2),
    )
    largest = offset**2 + constant
    n = min(30, 52 - largest.bit_length() - len(x).bit_length())
    shifted = [v << left for v in x]
    exponentials = []
    for v in shifted:
        d = v - max(shifted)
        q = -d // ln2
        polynomial = (d + q * ln2 + offset) ** 2 + constant
        exponentials.append(math.floor(Fraction(polynomial) * Fraction(2) ** (n - q)))
    found = []
    for e in exponentials:
        if e == 0:
            found.append(0.0)
            continue
        ratio = half_up(Fraction(sum(exponentials), e))
        leading = ratio.bit_length() - 1
        code = leading + (leading > 0 and bool(ratio >> (leading - 1) & 1))
        found.append(2.0**-code if code < 2**bits else 0.0)
    return found


@pytest.mark.parametrize("scale", [2.1, 0.9, 0.5, 0.11, 0.03, 0.004, 1e-4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_softmax_has_the_codes_of_the_equations(scale: float, bits: int) -> None:
    x = torch.randint(-128, 128, (2, 3, 4, 17), generator=torch.Generator().manual_seed(1))
    step = torch.tensor(scale)
    found = IntegerSoftmax(bits)([x * step], step, None)
    wanted = [softmax(row, float(step), bits) for row in x.flatten(0, 2).tolist()]
    assert torch.equal(found.flatten(0, 2), torch.tensor(wanted))


def test_softmax_with_a_scale_for_each_head() -> None:
    x, scale = torch.randint(-60, 60, (2, 3, 5, 9)), torch.tensor([0.1, 0.9, 0.02])
    found = IntegerSoftmax(4)([x * scale[:, None, None]], scale, 1)
    for head, one in enumerate(scale):
        n = ExponentialConstants.of(scale, 9).n  # of the finest scale, for all heads
        assert n == 30
        assert torch.equal(found[:, head], IntegerSoftmax(4)([x[:, head] * one], one, None))


@pytest.mark.parametrize("scale", [0.1, 0.02, 0.001])
def test_the_exponential_is_near_the_real_one(scale: float) -> None:
    """Over scores from 0 to -8: each octave is wrong by what l = floor(ln 2 / s) leaves out, and a little."""
    steps = torch.arange(round(8 / scale))
    x = -steps * scale
    found = integer_exponentials(x[None], torch.tensor(scale), None)[0]
    octave = math.floor(LN2 / scale)
    drift = steps // octave * (LN2 - octave * scale)
    off = (found / found[0]).log() - x.double()
    assert (off.abs() <= drift + 0.012).all()
    assert found[-1] > 0


def test_the_polynomial_is_within_three_thousandths_of_the_exponential() -> None:
    r = np.linspace(-LN2, 0, 1001)
    assert np.abs(0.3585 * (r + 1.353) ** 2 + 0.344 - np.exp(r)).max() < 0.003


def test_the_logarithm_rounds_at_one_and_a_half() -> None:
    numbers = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 2**40, 3 * 2**39, 3 * 2**39 - 1]).double()
    assert rounded_log2(numbers).tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 40, 41, 40]


# Files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", [IntegerLayerNorm(0.1), IntegerSoftmax(4)], ids=lambda a: a.kind)
def test_what_is_described_is_read(arithmetic: IntegerLayerNorm | IntegerSoftmax) -> None:
    assert read(described(arithmetic)) == arithmetic


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "integer_gelu"},
        {"kind": "integer_softmax"},
        {"kind": "integer_softmax", "bits": 9},
        {"kind": "integer_softmax", "bits": True},
        {"kind": "integer_softmax", "bits": 4, "more": 1},
        {"kind": "integer_layernorm", "output_scale": 0},
        {"kind": "integer_layernorm", "output_scale": "0.1"},
        {"kind": "integer_layernorm", "output_scale": math.nan},
    ],
    ids=str,
)
def test_other_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^arithmetic "):
        read(values)


def test_the_input_stays_as_it_is() -> None:
    x: Tensor = torch.randint(-8, 8, (1, 2, 3, 4)) * 0.5
    before = x.clone()
    IntegerSoftmax(4)([x], torch.tensor(0.5), None)
    IntegerLayerNorm(0.1)([x, torch.ones(4), torch.ones(4)], torch.tensor(0.5), None)
    assert torch.equal(x, before)
