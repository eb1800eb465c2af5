"""Twin uniform quantization: PTQ4ViT's two ranges by their formula, one range for each value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.quantizers.twin_uniform import By, TwinUniform
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

FLOATS = st.floats(-2, 2, width=32)
VALUES = hnp.arrays(np.float32, st.tuples(st.integers(1, 60)), elements=FLOATS)


@st.composite
def twins(draw: st.DrawFn) -> TwinUniform:
    bits, by = draw(st.integers(2, 8)), draw(st.sampled_from(("size", "sign")))
    scale = torch.tensor(draw(st.floats(2.0**-10, 2.0, width=32)))
    if by == "size":
        return TwinUniform(scale, scale * 2.0 ** -draw(st.integers(0, 19)), bits, "size")
    return TwinUniform(scale, torch.tensor(draw(st.floats(2.0**-10, 2.0, width=32))), bits, "sign")


def by_numpy(value: np.ndarray, scale: float, fine: float, bits: int, by: By) -> np.ndarray:
    """The paper's formula, value by value."""
    half = 2 ** (bits - 1)
    found = []
    for x in value.astype(np.float32):
        if by == "sign":
            step, low, high = (fine, -half, 0) if x < 0 else (scale, 0, half - 1)
        else:
            step, low, high = (fine if x <= np.float32(fine) * (half - 1) else scale), 0, half - 1
        found.append(np.clip(np.rint(x / np.float32(step)), low, high) * np.float32(step))
    return np.array(found, np.float32)


@settings(deadline=None)
@given(twins(), VALUES)
def test_it_is_its_formula(quantizer: TwinUniform, value: np.ndarray) -> None:
    found = quantizer(torch.from_numpy(value)).numpy()
    scales = float(quantizer.scale), float(quantizer.fine_scale)
    assert np.array_equal(found, by_numpy(value, *scales, quantizer.bits, quantizer.by))


@settings(deadline=None)
@given(twins(), VALUES)
def test_twice_is_once_zero_stays_and_there_are_no_more_values_than_codes(
    quantizer: TwinUniform, value: np.ndarray
) -> None:
    once = quantizer(torch.from_numpy(value))
    assert torch.equal(quantizer(once), once)
    assert not quantizer(torch.zeros(3)).any()
    assert len(quantizer(torch.linspace(-3, 3, 5001)).unique()) <= 2**quantizer.bits
    assert quantizer.kept_by_moving


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_order_stays_where_no_gap_is_left_between_the_ranges(bits: int) -> None:
    """What from_range gives; with a finer fine range values above it round to 0, as the paper has it."""
    value = torch.linspace(0, 1, 4001)
    quantizer = TwinUniform.from_range(value.min(), value.max(), spec(bits), None)
    assert (quantizer(value).diff() >= 0).all()
    assert quantizer(value)[-1] == pytest.approx(1)
    finer = quantizer.with_fine_scale(quantizer.fine_scale / 4)
    assert not (finer(value).diff() >= 0).all()


def spec(bits: int) -> TensorSpec:
    return TensorSpec(True, bits, "per-tensor", "minmax", 100.0, "input", "twin_uniform")


def test_a_value_above_the_split_is_of_one_range_alone() -> None:
    """The released code would add the fine range's largest value, 0.0625, to each of these."""
    quantizer = TwinUniform(torch.tensor(1 / 7), torch.tensor(1 / 7 / 16), 4, "size")
    torch.testing.assert_close(quantizer(torch.tensor([2 / 7, 0.42, 1.0])), torch.tensor([2 / 7, 3 / 7, 1.0]))


def test_gelu_s_least_value_has_a_code() -> None:
    quantizer = TwinUniform(torch.tensor(0.5), torch.tensor(0.16997 / 8), 4, "sign")
    found = quantizer(torch.tensor([-0.16997, -0.01, 0.0, 0.26, 3.5, 9.0]))
    torch.testing.assert_close(found, torch.tensor([-0.16997, 0.0, 0.0, 0.5, 3.5, 3.5]))


def test_values_below_0_choose_by_sign() -> None:
    found = TwinUniform.from_range(torch.tensor(-0.17), torch.tensor(2.0), spec(4), None)
    assert (found.by, float(found.fine_scale), float(found.scale)) == (
        "sign", pytest.approx(0.17 / 8), pytest.approx(2 / 7),
    )  # fmt: skip


@settings(deadline=None)
@given(twins(), VALUES)
def test_straight_through_gives_the_bits_of_a_call(quantizer: TwinUniform, value: np.ndarray) -> None:
    tensor = torch.from_numpy(value)
    assert torch.equal(quantizer.straight_through(tensor), quantizer(tensor))


@pytest.mark.parametrize("by", ["size", "sign"])
def test_gradients_are_those_of_rounding_as_the_identity(by: By) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.rand(80, generator=generator, dtype=torch.float64) * 3 - (1.0 if by == "sign" else 0.0)
    scale, fine = (torch.tensor(s, dtype=torch.float64) for s in (0.25, 0.03125))
    quantizer = TwinUniform(scale, fine, 4, by)
    low, high, least, most = quantizer.bounds
    is_fine = quantizer.is_fine(value)
    steps = torch.where(is_fine, (value / fine).round(), (value / scale).round())
    ends = torch.where(is_fine, (steps == low) | (steps == high), (steps == least) | (steps == most))
    value, is_fine, steps = value[~ends], is_fine[~ends], steps[~ends]  # on an edge there is no slope
    left = steps - torch.where(is_fine, value / fine, value / scale)

    def surrogate(value: Tensor, scale: Tensor, fine: Tensor) -> Tensor:
        small = (value / fine + left).clamp(low, high) * fine
        return torch.where(is_fine, small, (value / scale + left).clamp(least, most) * scale)

    leaves = [value.requires_grad_(), scale.requires_grad_(), fine.requires_grad_()]
    out = quantizer.straight_through(value)
    torch.testing.assert_close(out, surrogate(*leaves))
    found = torch.autograd.grad(out.sum(), leaves)
    for i, ours in enumerate(found):
        moved = [
            [leaf.detach() + (d if i == k else 0) for k, leaf in enumerate(leaves)] for d in (1e-6, -1e-6)
        ]
        above, below = (surrogate(*each) for each in moved)
        wanted = (above - below) / 2e-6
        torch.testing.assert_close(ours, wanted if i == 0 else wanted.sum(), rtol=1e-5, atol=1e-6)
    assert 0 < found[0].mean() < 1
    assert found[1] != 0
    assert found[2] != 0


def made(**changes: Any) -> TwinUniform:
    values: dict[str, Any] = {"scale": 0.5, "fine": 0.125, "bits": 4, "by": "size", **changes}
    return TwinUniform(
        torch.tensor(values["scale"]), torch.tensor(values["fine"]), values["bits"], values["by"]
    )


def test_they_are_equal_where_their_grids_are() -> None:
    different = [made(), made(scale=0.25), made(fine=0.0625), made(bits=5), made(by="sign"),
                 Uniform(torch.tensor(0.5), torch.tensor(0.0), 4, -8, 7, None)]  # fmt: skip
    for i, one in enumerate(different):
        assert [one == other for other in different] == [i == j for j in range(len(different))]
    assert hash(made()) == hash(made())


@settings(deadline=None)
@given(twins())
def test_what_is_saved_is_read(quantizer: TwinUniform) -> None:
    again = TwinUniform.from_settings(quantizer.bits, None, quantizer.settings(), quantizer.arrays())
    assert again == quantizer


@pytest.mark.parametrize(
    ("axis", "settings", "fine", "said"),
    [
        (None, {}, 0.125, "two scales and by"),
        (None, {"by": "parity"}, 0.125, "two scales and by"),
        (None, {"by": "size", "more": 1}, 0.125, "two scales and by"),
        (1, {"by": "size"}, 0.125, "two scales and by"),
        (None, {"by": "size"}, 0.1, "power of two"),
        (None, {"by": "sign"}, 0.0, "finite and above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(
    axis: int | None, settings: dict[str, Any], fine: float, said: str
) -> None:
    arrays = {"scale": torch.tensor(0.5), "fine_scale": torch.tensor(fine)}
    with pytest.raises(ValueError, match=said):
        TwinUniform.from_settings(4, axis, settings, arrays)
