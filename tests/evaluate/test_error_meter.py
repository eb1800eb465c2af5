"""The figures of error: their values by hand, their directions, and partial batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq2themoon.evaluate.error_meter import FIGURES, SUMS, ErrorMeter, per_image
from ptq2themoon.evaluate.metrics import output_sqnr_db, ranked, sqnr_db

VALUES = st.floats(-100, 100, width=32)
PAIRS = hnp.array_shapes(min_dims=2, max_dims=4, max_side=4).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=VALUES)] * 2)
)


def test_figures_by_hand() -> None:
    reference = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
    quantized = torch.tensor([[[3.0, 3.0]], [[0.0, 1.0]]])
    found = per_image(quantized, reference)
    wanted = {
        "noise": [1, 2],
        "signal": [25, 1],
        "nsr": [1 / 25, 2 / 1],
        "relative_error": [(0 + 1 / 16) / 2, (1 + 1e7) / 2],  # an error where there was nothing
        "mse": [1 / 2, 1],
        "mae": [1 / 2, 1],
        "cosine": [21 / (5 * math.sqrt(18)), 0],
    }
    assert found.keys() == wanted.keys() == {*SUMS, *FIGURES}
    for figure, values in wanted.items():
        assert found[figure].tolist() == pytest.approx(values, rel=1e-6), figure
        assert found[figure].dtype == torch.float64


@settings(max_examples=60)
@given(PAIRS)
def test_figures_are_numpy_s(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = per_image(*(torch.from_numpy(x) for x in pair))
    for i, (q, f) in enumerate(zip(*(x.astype(np.float64) for x in pair), strict=True)):
        difference = q - f
        wanted = {
            "nsr": (difference**2).sum() / ((f**2).sum() + 1e-7),
            "relative_error": (difference**2 / (f**2 + 1e-7)).mean(),
            "mse": (difference**2).mean(),
            "mae": np.abs(difference).mean(),
        }
        for figure, value in wanted.items():
            assert found[figure][i].item() == pytest.approx(value, rel=1e-9), figure
        if (lengths := np.linalg.norm(q) * np.linalg.norm(f)) > 1e-6:
            assert found["cosine"][i].item() == pytest.approx((q * f).sum() / lengths, abs=1e-6)


@settings(max_examples=30)
@given(PAIRS)
def test_no_error_is_zero_and_any_error_is_more(pair: tuple[np.ndarray, np.ndarray]) -> None:
    q, f = (torch.from_numpy(x) for x in pair)
    for figure in ("nsr", "relative_error", "mse", "mae"):
        assert per_image(f, f)[figure].tolist() == [0.0] * len(f)
        assert ((per_image(q, f)[figure] > 0) == (q != f).flatten(1).any(1)).all()


def test_directions() -> None:
    """All but cosine and decibels are the larger the worse."""
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 4, 50, generator=generator)
    tables = [per_image(reference + amount * noise, reference) for amount in (0.01, 0.1, 1.0)]
    for figure in FIGURES:
        values = [table[figure].mean().item() for table in tables]
        assert values == sorted(values, reverse=figure == "cosine"), figure


def test_nsr_has_no_unit_and_mse_has() -> None:
    f, q = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1.1, -2.0, 2.9]])
    small, large = per_image(q, f), per_image(1000 * q, 1000 * f)
    assert large["nsr"].item() == pytest.approx(small["nsr"].item(), rel=1e-5)
    assert large["cosine"].item() == pytest.approx(small["cosine"].item())
    assert large["mse"].item() == pytest.approx(1e6 * small["mse"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("nsr", "decibels"), [(1.0, 0), (0.1, 10), (1e-4, 40), (2.0, -3.0103), (0.0, math.inf)]
)
def test_sqnr(nsr: float, decibels: float) -> None:
    assert sqnr_db(nsr) == pytest.approx(decibels)


@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1, 9], [1] * 10])
def test_partial_batches_count_by_their_images(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    q, f = torch.randn(2, 10, 3, 5, generator=generator)
    meter = ErrorMeter()
    for part_q, part_f in zip(q.split(sizes), f.split(sizes), strict=True):
        meter.add(part_q, part_f)
    summary = meter.summary()
    assert list(summary) == ["nsr", "sqnr_db", "relative_error", "mse", "mae", "cosine"]
    for figure in FIGURES:
        assert meter.images(figure).tolist() == pytest.approx(per_image(q, f)[figure].tolist())
        if figure != "nsr":
            assert summary[figure] == pytest.approx(per_image(q, f)[figure].mean().item())
    assert summary["nsr"] == pytest.approx(float((q - f).square().sum() / f.square().sum()))
    assert summary["sqnr_db"] == sqnr_db(summary["nsr"])
    assert output_sqnr_db(q.numpy(), f.numpy()) == pytest.approx(summary["sqnr_db"])


def test_sqnr_is_a_ratio_of_sums_and_no_mean_of_ratios() -> None:
    meter = ErrorMeter()
    meter.add(torch.tensor([[9.0], [0.5]]), torch.tensor([[10.0], [1.0]]))
    assert meter.images("nsr").tolist() == pytest.approx([0.01, 0.25])
    assert meter.summary()["nsr"] == pytest.approx(1.25 / 101)
    assert meter.summary()["sqnr_db"] == pytest.approx(10 * math.log10(101 / 1.25))


def test_of_equal_logits_the_first_class_counts() -> None:
    logits = np.array([[1, 2, 2, 0], [3, 3, 3, 3]], np.float32)
    assert ranked(logits, 3).tolist() == [[1, 2, 0], [0, 1, 2]]


def test_what_was_measured_is_not_kept_only_figures() -> None:
    meter = ErrorMeter()
    meter.add(torch.zeros(4, 1000), torch.ones(4, 1000))
    assert {len(value) for value in meter.values.values()} == {4}


def test_windows_of_an_image_count_as_one_image() -> None:
    """Swin's operators work on [B * windows, ...]; the figures stay those of an image."""
    q, f = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    wanted, found = per_image(q, f), per_image(q.flatten(0, 1), f.flatten(0, 1), images=3)
    for figure in FIGURES:
        torch.testing.assert_close(found[figure], wanted[figure])


@pytest.mark.parametrize("shape", [(1, 7), (3, 4, 5), ()])
def test_where_images_cannot_be_told_apart_the_whole_counts_for_each(shape: tuple[int, ...]) -> None:
    """What depends on no image, and what has the batch elsewhere than in front."""
    generator = torch.Generator().manual_seed(0)
    q, f = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    found, wanted = per_image(q, f, images=4), per_image(q.reshape(1, -1), f.reshape(1, -1))
    for figure in FIGURES:
        assert found[figure].tolist() == wanted[figure].tolist() * 4


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 2)])
def test_outputs_of_any_rank(shape: tuple[int, ...]) -> None:
    meter = ErrorMeter()
    meter.add(torch.ones(shape), 2 * torch.ones(shape), 4)
    assert meter.images("nsr").tolist() == pytest.approx([0.25] * 4)
