"""Scores of an operator's output: their formulas in numpy, in one piece or in many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ptq2themoon.quantize.scores import SCORES, Ranked, Score
from ptq2themoon.quantize.watching import cross_entropy_of_own_labels

IMAGES, HEADS, TOKENS, CHANNELS = 4, 2, 5, 6
AXES = [None, 1, -1]


def outputs(noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """y^ and y, [images, heads, tokens, channels], neither with a mean of 0."""
    generator = torch.Generator().manual_seed(0)
    shape = IMAGES, HEADS, TOKENS, CHANNELS
    wanted = torch.randn(shape, generator=generator) + 0.5
    return wanted + noise * torch.randn(shape, generator=generator) + 0.1, wanted


def scored(score: Score, found: Tensor, wanted: Tensor, axis: int | None, pieces: int = 1) -> Tensor:
    of_wanted: Tensor | float = 0.0
    of_found: Tensor | float = 0.0
    for ours, theirs in zip(found.chunk(pieces), wanted.chunk(pieces), strict=True):
        of_wanted = of_wanted + score.of_wanted(theirs, axis)
        of_found = of_found + score.of_found(ours.clone(), theirs, None, axis)
    return score.loss(torch.as_tensor(of_wanted), torch.as_tensor(of_found))


def by_numpy(name: str, found: np.ndarray, wanted: np.ndarray) -> float:
    """Of one group, [images, ...]."""
    error = found - wanted
    if name == "mse":
        return float((error**2).sum())
    if name == "l2":
        return float(sum(np.linalg.norm(image) for image in error))
    if name == "pearson":
        found, wanted = found - found.mean(), wanted - wanted.mean()
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    tie = 1e-4 * ((found - wanted) ** 2).sum() / (wanted**2).sum()
    return float(1 - cosine + tie)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_its_formula(name: str, axis: int | None) -> None:
    found, wanted = outputs()
    groups = (
        [...] if axis is None else [(slice(None),) * (axis % 4) + (i,) for i in range(wanted.shape[axis])]
    )
    expected = [by_numpy(name, found[g].double().numpy(), wanted[g].double().numpy()) for g in groups]
    np.testing.assert_allclose(scored(SCORES[name](), found, wanted, axis), expected, rtol=1e-5)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", SCORES)
def test_pieces_add_up(name: str, axis: int | None) -> None:
    score, (found, wanted) = SCORES[name](), outputs()
    whole = scored(score, found, wanted, axis)
    torch.testing.assert_close(scored(score, found, wanted, axis, 4), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["cosine", "pearson"])
def test_a_tiny_error_keeps_its_digits(name: str) -> None:
    """1 - cos of errors of 1e-5 is 1e-10, far below what is left of float32 numbers near 1."""
    found, wanted = outputs(noise=0)
    found = wanted + 1e-5 * (found - wanted + torch.linspace(-1, 1, wanted.numel()).view_as(wanted))
    expected = by_numpy(name, found.double().numpy(), wanted.double().numpy())
    assert scored(SCORES[name](), found, wanted, None).item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["cosine", "pearson"])
def test_an_output_of_zeros_is_as_bad_as_one_that_has_nothing_to_do_with_it(name: str) -> None:
    _, wanted = outputs()
    assert scored(SCORES[name](), torch.zeros_like(wanted), wanted, None).item() == pytest.approx(1 + 1e-4)


@pytest.mark.parametrize("name", ["cosine", "pearson"])
def test_of_two_outputs_that_differ_by_a_factor_the_nearer_is_better(name: str) -> None:
    found, wanted = outputs(noise=0.01)
    near, far = (scored(SCORES[name](), f * found, wanted, None).item() for f in (1.0, 1.01))
    assert near < far


def test_the_order_of_attention_is_the_paper_s_sum_over_pairs() -> None:
    found, wanted = (scores.softmax(-1).double() for scores in outputs())
    theta, expected = 0.05, 0.0
    shifts = range(1, CHANNELS)  # every ordered pair once
    for image in range(IMAGES):
        for ours, theirs in zip(
            found[image].reshape(-1, CHANNELS), wanted[image].reshape(-1, CHANNELS), strict=True
        ):
            for i in range(CHANNELS):
                for j in range(CHANNELS):
                    if i != j:
                        sign = math.copysign(1, theirs[i] - theirs[j])
                        expected += max(0.0, theta - float(ours[i] - ours[j]) * sign)
    score = Ranked(lambda scores: scores, gamma=2.0, theta=theta, shifts=shifts)
    assert float(score.order(found, wanted, None)) * len(shifts) == pytest.approx(expected, rel=1e-6)
    plain = scored(SCORES["pearson"](), found, wanted, None).item()
    mean = expected / len(shifts) / wanted.numel()
    assert scored(score, found, wanted, None).item() == pytest.approx(plain + 2 * mean, rel=1e-6)


def test_labels_are_drawn_from_the_model_s_own_softmax() -> None:
    """So the mean square of the gradient is the Fisher information, p_i (1 - p_i) on the diagonal."""
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(20000, 3).clone().requires_grad_()
    loss = cross_entropy_of_own_labels(logits, torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(loss, [logits])
    p = torch.softmax(logits[0].detach(), 0)
    torch.testing.assert_close(gradient.square().mean(0), p * (1 - p), rtol=0.05, atol=0)
    torch.testing.assert_close(gradient.mean(0), torch.zeros(3), rtol=0, atol=0.02)
