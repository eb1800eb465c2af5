"""Attention of the class token to the patches, and how far quantization moves it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ptq2themoon.errors import UserError, nearest
from ptq2themoon.quantize.simulation import SimulatedModel

FLOOR = 1e-6  # so that attention that is zero everywhere still is a distribution, the uniform one


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
    try:
        facts = json.loads(fusion.read_text(encoding="utf-8"))["attention"]
        names, prefix, grid = facts["softmax"], facts["prefix_tokens"], facts["grid"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{fusion}: no fusion report of ptq2themoon ({error}); run the fuse stage") from None
    index = block + len(names) if block < 0 else block
    if not 0 <= index < len(names):
        valid = range(-len(names), len(names))
        raise UserError(
            f"attention.block: {block}: the model has {len(names)} blocks; {nearest(block, valid)}"
        )
    if not prefix or grid is None:
        return None
    rows, columns = grid
    return AttentionSpec(names[index], index, prefix, (rows, columns))


def class_token_attention(model: SimulatedModel, images: Tensor, spec: AttentionSpec) -> Tensor:
    """Attention [B, heads, patches] of images [B, C, H, W], as the model computes it (quantized or not)."""
    return run_with_attention(model, images, spec)[1]


def run_with_attention(model: SimulatedModel, images: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Logits [B, classes] and class-token attention [B, heads, patches] of one run."""
    caught: list[Tensor] = []
    watch = {spec.operator: lambda _name, _inputs, outputs: caught.append(spec.class_token(outputs[0]).cpu())}
    logits = model(images, watch).cpu()
    return logits, caught[0]


def save_maps(
    path: Path, images: Tensor, attention: Tensor, spec: AttentionSpec, recipe: str, labels: Sequence[int]
) -> None:
    """Write uint8 `images` [N, C, H, W] and `attention` [N, heads, patches] with what they show.

    safetensors orders metadata at random; it is put in sorted here, so that equal maps are equal bytes.

    Raises:
        UserError: attention that is not finite.
    """
    if not bool(torch.isfinite(attention).all()):
        raise UserError("the model gives attention that is not finite")
    metadata = {
        "grid": "x".join(map(str, spec.grid)),
        "block": str(spec.block),
        "recipe": recipe,
        "labels": ",".join(map(str, labels)),
    }
    plain = save({"images": images.contiguous(), "attention": attention.float().contiguous()})
    length = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + length])
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + plain[8 + length :])


def fidelity(quantized: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity and KL divergence of class-token attention, both [B], means over heads.

    Args:
        quantized, reference: [B, heads, patches], as `AttentionSpec.class_token` gives.

    KL(quantized || reference) in nats, of the attention to the patches normalised to sum to one.
    Lower is better; cosine: higher is better. In this direction a weight that quantization sets to zero
    counts nothing; in the other its share would be infinite, or be decided by a floor.
    """
    cosine = torch.nn.functional.cosine_similarity(quantized, reference, dim=-1).mean(1)
    q, p = (_distribution(a) for a in (quantized, reference))
    kl = (q * (q / p).log()).sum(-1).mean(1)
    return cosine, kl


def _distribution(attention: Tensor) -> Tensor:
    floored = attention.double().clamp_min(FLOOR)
    return floored / floored.sum(-1, keepdim=True)
