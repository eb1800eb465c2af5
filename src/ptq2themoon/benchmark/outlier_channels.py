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
    blocks = blocks_of(model)
    if not blocks:
        raise UserError("no block with norm1, attn.qkv and mlp; give benchmark.stretched: false")
    for block in blocks:
        for norm, reader in norms_of(block):
            stretch_norm(norm, reader, _factors(len(norm.weight), generator))
        width = block.attn.proj.in_features
        factors = _factors(width, generator)
        values = slice(2 * width, 3 * width)  # timm's qkv: queries, keys, values
        with torch.no_grad():
            block.attn.qkv.weight[values] *= factors[:, None]
            if block.attn.qkv.bias is not None:
                block.attn.qkv.bias[values] *= factors
            block.attn.proj.weight /= factors


def blocks_of(model: nn.Module) -> list[Any]:
    """The transformer blocks that can be stretched."""
    found: list[Any] = [m for m in model.modules() if all(hasattr(m, n) for n in ("norm1", "attn", "mlp"))]
    return [block for block in found if hasattr(block.attn, "qkv")]


def norms_of(block: Any) -> tuple[tuple[Any, Any], ...]:
    """The LayerNorms of a block, each with the layer that reads it."""
    return (block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)


@torch.no_grad()
def stretch_norm(norm: Any, reader: Any, factors: Tensor) -> None:
    """Let the channels of a LayerNorm grow by `factors` [channels]; the weights of its reader shrink."""
    norm.weight *= factors
    norm.bias *= factors
    reader.weight /= factors


def _factors(channels: int, generator: torch.Generator) -> Tensor:
    """1 for most channels, and `GROWTH` for the outliers."""
    factors = torch.ones(channels)
    chosen = torch.randperm(channels, generator=generator)[: max(1, round(channels * OUTLIERS))]
    for channel, growth in zip(chosen, itertools.cycle(GROWTH)):
        factors[channel] = growth
    return factors
