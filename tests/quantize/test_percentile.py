"""The fast percentile observer: the order statistics of torch.kthvalue, and PPQ's scales, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppq_config import config
from torch import Tensor

from ptq2themoon.ppq_compat import observer
from ptq2themoon.quantize.observers.percentile import Percentile, largest
from ptq2themoon.vocabulary.recipes import TensorSpec

DRAWS = {
    "normal": lambda g, n: torch.randn(n, generator=g),
    "heavy tails": lambda g, n: torch.randn(n, generator=g) / torch.rand(n, generator=g).clamp(min=1e-3),
    "few values": lambda g, n: torch.randint(-3, 4, (n,), generator=g).float(),
    "one value": lambda g, n: torch.full((n,), 0.25),
    "sorted": lambda g, n: torch.arange(n) / n,
    "softmax": lambda g, n: torch.softmax(4 * torch.randn(n, generator=g), 0),
}


def kth_largest(value: Tensor, k: int) -> Tensor:
    return torch.kthvalue(value.flatten(), value.numel() - k + 1).values


@pytest.mark.parametrize("draw", DRAWS)
@given(n=st.integers(1, 60_000), share=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_the_kth_largest_is_torch_s(draw: str, n: int, share: float, seed: int) -> None:
    value = DRAWS[draw](torch.Generator().manual_seed(seed), n)
    for k in {1, n, min(n, 1 + int(n * share)), min(n, 1 + int(n * share / 1000))}:
        assert torch.equal(largest(value, k), kth_largest(value, k))
        assert torch.equal(-largest(-value, k), torch.kthvalue(value, k).values)


@pytest.mark.parametrize("percentile", [0.9999, 0.999, 0.99, 0.9, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(32, 50, 192), (7, 3, 50, 50), (1, 1), (5,)])
def test_scales_are_ppq_s(shape: tuple[int, ...], percentile: float) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(shape, generator=generator) * (1 + i) for i in range(3)]
    theirs = config(observer="percentile", quantile=percentile)
    spec = TensorSpec(True, 8, "per-tensor", "percentile", 100 * percentile, "input")
    ours, ppqs = Percentile(spec, None), observer.TorchPercentileObserver(None, theirs)
    for batch in batches:
        ours.observe(batch)
        ppqs.observe(batch)
    ppqs.render_quantization_config()
    scale = ours.quantizer().scale
    assert scale.shape == theirs.scale.shape == ()
    assert torch.equal(scale, theirs.scale)


def test_a_tensor_that_is_not_laid_out_in_rows_is_not_changed() -> None:
    value = torch.randn(64, 50, 40).transpose(1, 2)
    before = value.clone()
    assert torch.equal(largest(value, 13), kth_largest(value, 13))
    assert torch.equal(value, before)
