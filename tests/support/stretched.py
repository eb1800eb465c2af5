"""A model whose LayerNorms have channels of very different size, and whose function is as before."""

from __future__ import annotations

import torch
from torch import nn


def stretched(module: nn.Module, largest: float = 100) -> nn.Module:
    """The same function; each LayerNorm's channels grow by 1 to `largest`, its readers' weights shrink."""
    generator = torch.Generator().manual_seed(1)
    for block in module.modules():
        if not (hasattr(block, "norm1") and hasattr(block, "mlp")):
            continue
        for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            r = 1 + (largest - 1) * torch.rand(norm.weight.shape, generator=generator)
            norm.weight.data *= r
            norm.bias.data *= r
            layer.weight.data /= r
    return module
