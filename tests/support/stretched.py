"""A model whose LayerNorms have channels of very different size, and whose function is as before."""

from __future__ import annotations

import torch
from torch import nn

from ptq2themoon.benchmark.outlier_channels import blocks_of, norms_of, stretch_norm


def stretched(module: nn.Module, largest: float = 100) -> nn.Module:
    """The same function; each LayerNorm's channels grow by 1 to `largest`, its readers' weights shrink."""
    generator = torch.Generator().manual_seed(1)
    for block in blocks_of(module):
        for norm, reader in norms_of(block):
            r = 1 + (largest - 1) * torch.rand(norm.weight.shape, generator=generator)
            stretch_norm(norm, reader, r)
    return module
