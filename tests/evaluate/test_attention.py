"""Fidelity of the class token's attention, and where it is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_quantized import Tiny

from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec, fidelity
from ptq2themoon.graph.report import attention_facts

ATTENTION = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(0, 1, width=32))


def heads(*rows: list[float]) -> torch.Tensor:
    """One image, one row a head."""
    return torch.tensor([rows])


# Fidelity -----------------------------------------------------------------------------------------


def test_equal_attention_is_one_and_zero() -> None:
    attention = torch.rand(4, 3, 16, generator=torch.Generator().manual_seed(0))
    cosine, kl = fidelity(attention, attention)
    assert cosine.tolist() == pytest.approx([1.0] * 4)
    assert kl.tolist() == [0.0] * 4


def test_permuted_attention_by_hand() -> None:
    cosine, kl = fidelity(heads([0.2, 0.3, 0.5]), heads([0.5, 0.3, 0.2]))
    assert cosine.item() == pytest.approx((0.1 + 0.09 + 0.1) / 0.38)
    assert kl.item() == pytest.approx(0.3 * math.log(2.5), rel=1e-5)


def test_kl_is_of_quantized_to_floating_point_in_nats() -> None:
    reference, quantized = heads([0.5, 0.5]), heads([0.9, 0.1])
    there = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert fidelity(quantized, reference)[1].item() == pytest.approx(there, rel=1e-5)
    back = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert fidelity(reference, quantized)[1].item() == pytest.approx(back, rel=1e-5)


def test_a_small_weight_that_becomes_zero_costs_little() -> None:
    """Quantization does that to many; no floor decides what they cost."""
    _, kl = fidelity(heads([0.6, 0.4, 0.0]), heads([0.599, 0.399, 0.002]))
    assert 0 < kl.item() < 0.003


def test_what_the_class_token_gives_to_itself_does_not_count() -> None:
    """Rows to the patches need not sum to one; only their shape is compared."""
    cosine, kl = fidelity(heads([0.1, 0.2, 0.1]), heads([0.25, 0.5, 0.25]))
    assert cosine.item() == pytest.approx(1)
    assert kl.item() == pytest.approx(0, abs=1e-5)


def test_attention_quantized_to_nothing_is_bad_but_a_number() -> None:
    cosine, kl = fidelity(torch.zeros(1, 1, 4), heads([0.7, 0.1, 0.1, 0.1]))
    assert cosine.item() == 0
    uniform = 0.25 * math.log(0.25 / 0.7) + 0.75 * math.log(0.25 / 0.1)
    assert kl.item() == pytest.approx(uniform, rel=1e-4)
    _, kl = fidelity(heads([1.0, 0.0]), heads([0.5, 0.5]))
    assert kl.item() == pytest.approx(math.log(2), rel=1e-4)


def test_an_image_is_the_mean_of_its_heads() -> None:
    q, f = torch.rand(2, 5, 3, 9, generator=torch.Generator().manual_seed(1))
    cosine, kl = fidelity(q, f)
    each = [fidelity(q[:, head : head + 1], f[:, head : head + 1]) for head in range(3)]
    torch.testing.assert_close(cosine, torch.stack([one[0] for one in each]).mean(0))
    torch.testing.assert_close(kl, torch.stack([one[1] for one in each]).mean(0))


@settings(max_examples=60, deadline=None)
@given(ATTENTION, ATTENTION)
def test_bounds(q: np.ndarray, f: np.ndarray) -> None:
    cosine, kl = fidelity(torch.from_numpy(q), torch.from_numpy(f))
    assert ((cosine >= 0) & (cosine <= 1 + 1e-6)).all()
    assert (kl >= -1e-12).all()
    assert torch.isfinite(kl).all()


# Where it is read ---------------------------------------------------------------------------------


def write(folder: Path, **facts: Any) -> Path:
    base = {"softmax": ["a", "b", "c"], "prefix_tokens": 1, "grid": [2, 3], "heads": 3}
    path = folder / "fusion.json"
    path.write_text(json.dumps({"attention": base | facts}))
    return path


@pytest.mark.parametrize(("block", "wanted"), [(0, ("a", 0)), (2, ("c", 2)), (-1, ("c", 2)), (-3, ("a", 0))])
def test_blocks_count_from_either_end(tmp_path: Path, block: int, wanted: tuple[str, int]) -> None:
    spec = attention_spec(write(tmp_path), block)
    assert spec == AttentionSpec(*wanted, prefix_tokens=1, grid=(2, 3))


@pytest.mark.parametrize("block", [3, -4, 99])
def test_a_block_that_is_not_there_is_refused(tmp_path: Path, block: int) -> None:
    with pytest.raises(UserError, match=rf"attention\.block: {block}: the model has 3 blocks; "):
        attention_spec(write(tmp_path), block)


@pytest.mark.parametrize("facts", [{"prefix_tokens": 0}, {"grid": None}])
def test_no_class_token_no_attention_of_it(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert attention_spec(write(tmp_path, **facts), -1) is None


def test_the_class_token_is_the_first_and_patches_follow_the_prefix() -> None:
    attention = torch.arange(2 * 1 * 5 * 5).reshape(2, 1, 5, 5)
    spec = AttentionSpec("a", 0, prefix_tokens=2, grid=(1, 3))
    assert spec.class_token(attention).tolist() == [[[2, 3, 4]], [[27, 28, 29]]]


def test_facts_of_a_real_graph(tiny: Tiny, tmp_path: Path) -> None:
    facts = attention_facts(onnx.load(tiny.path), tiny.operators)
    spec = attention_spec(write(tmp_path, **facts), -1)
    assert spec == AttentionSpec(tiny.role("softmax", 1), 1, prefix_tokens=1, grid=(4, 4))
