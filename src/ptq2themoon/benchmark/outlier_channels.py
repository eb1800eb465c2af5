"""A model whose activations have outlier channels, as large ViTs have, and whose function is as before."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ptq2themoon.vocabulary.errors import UserError

OUTLIERS = 1 / 32  # of a LayerNorm's channels, and of an attention's values
GROWTH = (64, 32, 16, 8, 4, 2)  # times as large they are, by turns; powers of two cost no digit


def stretch(model: nn.Module, seed: int) -> None:
    """Let some channels of each LayerNorm and of each attention's values grow; their readers' weights shrink.

    Args:
        model: of timm, with blocks that hold `norm1`, `attn.qkv`, `attn.proj`, `norm2` and `mlp.fc1`.

    Raises:
        UserError: no such block.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = _blocks(model)
    if not blocks:
        raise UserError("no block with norm1, attn.qkv and mlp; give benchmark.stretched: false")
    with torch.no_grad():
        for block in blocks:
            for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                factors = _factors(len(norm.weight), generator)
                _grow(norm.weight, norm.bias, factors)
                reader.weight /= factors
            width = block.attn.proj.in_features
            factors = _factors(width, generator)
            values = slice(2 * width, 3 * width)  # timm's qkv: queries, keys, values
            bias = block.attn.qkv.bias
            _grow(block.attn.qkv.weight[values], None if bias is None else bias[values], factors)
            block.attn.proj.weight /= factors


def _blocks(model: nn.Module) -> list[Any]:
    found: list[Any] = [m for m in model.modules() if all(hasattr(m, n) for n in ("norm1", "attn", "mlp"))]
    return [block for block in found if hasattr(block.attn, "qkv")]


def _grow(weight: Tensor, bias: Tensor | None, factors: Tensor) -> None:
    weight *= factors if weight.ndim == 1 else factors[:, None]
    if bias is not None:
        bias *= factors


def _factors(channels: int, generator: torch.Generator) -> Tensor:
    """1 for most channels, and `GROWTH` for the outliers."""
    factors = torch.ones(channels)
    chosen = torch.randperm(channels, generator=generator)[: max(1, round(channels * OUTLIERS))]
    for channel, growth in zip(chosen, itertools.cycle(GROWTH)):
        factors[channel] = growth
    return factors
