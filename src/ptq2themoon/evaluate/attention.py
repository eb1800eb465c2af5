"""Attention of the class token to the patches, and how far quantization moves it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptq2themoon.errors import UserError, nearest

FLOOR = 1e-6  # quantized attention can be exactly zero, where KL has no value


@dataclass(frozen=True)
class AttentionSpec:
    """Where a model's attention is read.

    Attributes:
        operator: the Softmax of the block.
        block: counted from 0.
        prefix_tokens: tokens before the patches; the first of them is the class token.
        grid: rows and columns of patches.
    """

    operator: str
    block: int
    prefix_tokens: int
    grid: tuple[int, int]

    def class_token(self, attention: Tensor) -> Tensor:
        """[B, heads, patches] of a Softmax output [B, heads, tokens, tokens]."""
        return attention[:, :, 0, self.prefix_tokens :]


def attention_spec(fusion: Path, block: int) -> AttentionSpec | None:
    """Read from fusion.json; a negative block counts from the end.

    None where there is no class token among the tokens of the block.

    Raises:
        UserError: a block that the model does not have.
    """
    facts = json.loads(fusion.read_text(encoding="utf-8"))["attention"]
    names = facts["softmax"]
    index = block + len(names) if block < 0 else block
    if not 0 <= index < len(names):
        valid = range(-len(names), len(names))
        raise UserError(
            f"attention.block: {block}: the model has {len(names)} blocks; {nearest(block, valid)}"
        )
    if not facts["prefix_tokens"] or facts["grid"] is None:
        return None
    rows, columns = facts["grid"]
    return AttentionSpec(names[index], index, facts["prefix_tokens"], (rows, columns))


def fidelity(quantized: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity and KL divergence of class-token attention, both [B], means over heads.

    Args:
        quantized, reference: [B, heads, patches], as `AttentionSpec.class_token` gives.

    KL(reference || quantized) in nats, of the attention to the patches normalised to sum to one,
    each value at least 1e-6. Lower is better; cosine: higher is better.
    """
    cosine = torch.nn.functional.cosine_similarity(quantized, reference, dim=-1).mean(1)
    q, p = (_distribution(a) for a in (quantized, reference))
    kl = (p * (p / q).log()).sum(-1).mean(1)
    return cosine, kl


def _distribution(attention: Tensor) -> Tensor:
    floored = attention.double().clamp_min(FLOOR)
    return floored / floored.sum(-1, keepdim=True)
