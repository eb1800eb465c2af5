"""Attention of the class token, or of all tokens where there is none, and how far quantization moves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ptq2themoon.evaluate import metrics
from ptq2themoon.evaluate.attention_query import CLASS_TOKEN, MEAN_OF_TOKENS, NO_GRID
from ptq2themoon.graph.meaning.fusion_record import Attention
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError, nearest


@dataclass(frozen=True)
class AttentionSpec:
    """Where a model's attention is read, and whose.

    Attributes:
        operator: the Softmax of the block.
        block: counted from 0.
        groups: sets of tokens of an image that attend apart, such as Swin's windows.
        prefix_tokens: tokens before the patches; the first of them is the class token, if there is one.
        grid: rows and columns of patches; None where the tokens make no single grid.
        note: what is treated as class token, or that there is none and why.
        tokens: that attend to each other in a group; None where fusion.json does not know.
    """

    operator: str
    block: int
    groups: int
    prefix_tokens: int
    grid: tuple[int, int] | None
    class_token: bool
    note: str
    tokens: int | None = None

    @property
    def query(self) -> str:
        """Whose attention: the class token's, or the mean of all tokens'."""
        return CLASS_TOKEN if self.class_token and self.prefix_tokens else MEAN_OF_TOKENS

    def of_query(self, attention: Tensor, images: int) -> Tensor:
        """[B, groups, heads, patches] of a Softmax output of `images` (B), as `of_each` reads it."""
        of_each = self.of_each(attention, images)
        query = of_each[:, :, :, 0] if self.query == CLASS_TOKEN else of_each.mean(3)
        return query[..., self.prefix_tokens :]

    def of_each(self, attention: Tensor, images: int) -> Tensor:
        """[B, groups, heads, tokens, tokens] of a Softmax output [B*groups, heads, tokens, tokens].

        [B, groups, heads, tokens, tokens] and [B*groups*heads, tokens, tokens] are read alike.
        """
        tokens = attention.shape[-1]
        apart, rest = divmod(attention.shape[:-2].numel(), images * self.groups)
        if rest or (self.grid and self.grid[0] * self.grid[1] != tokens - self.prefix_tokens):
            raise UserError(
                f"operator {self.operator!r}: attention of {images} images is {list(attention.shape)}, but "
                f"fusion.json says {self.groups} groups, {self.prefix_tokens} tokens before the patches, "
                f"grid {self.grid}; run the fuse stage again"
            )
        return attention.reshape(images, self.groups, apart, -1, tokens)

    def maps(self, attention: Tensor) -> Tensor:
        """[B, heads, patches], mean over groups, of what `of_query` gives.

        Without a grid nothing lies in the same place in two groups: [B, heads, groups * patches].
        """
        return attention.transpose(1, 2).flatten(2) if self.grid is None else attention.mean(1)


def attention_specs(attention: Attention) -> list[AttentionSpec]:
    """Of every block of a fusion.json."""
    return [
        AttentionSpec(
            operator=block.softmax,
            block=number,
            groups=block.groups or 1,  # unknown: all that attends apart counts as heads
            prefix_tokens=block.prefix_tokens,
            grid=block.grid,
            class_token=attention.class_token,
            note=attention.note,
            tokens=block.tokens if isinstance(block.tokens, int) else None,
        )
        for number, block in enumerate(attention.blocks)
    ]


def attention_spec(attention: Attention, block: int) -> AttentionSpec:
    """Of one block; a negative one counts from the end.

    Raises:
        UserError: a block that the model does not have.
    """
    specs = attention_specs(attention)
    valid = range(-len(specs), len(specs))
    if block not in valid:
        raise UserError(
            f"attention.block: {block}: the model has {len(specs)} blocks; {nearest(block, valid)}"
        )
    return specs[block]


def run_with_attention(model: SimulatedModel, images: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Output [B, ...] and the query's attention [B, groups, heads, patches] of one run (quantized or not)."""
    caught: list[Tensor] = []

    def keep(_name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        caught.append(spec.of_query(outputs[0], len(part)).cpu())

    output = []
    for part in model.parts(images):
        output.append(model(part, {spec.operator: keep}).cpu())
    return torch.cat(output), torch.cat(caught)


def save_maps(
    path: Path,
    images: Tensor,
    attention: Tensor,
    spec: AttentionSpec,
    recipe: str,
    labels: Sequence[int],
    names: Sequence[str] = (),
    **instead: str,
) -> None:
    """Write uint8 `images` [N, C, H, W] and the maps of `attention`, as `of_query` gives it.

    `names`: of each image's class, where the data set tells them; `instead`: metadata other than the spec's.

    Raises:
        UserError: attention that is not finite.
    """
    if not bool(torch.isfinite(attention).all()):
        raise UserError("the model gives attention that is not finite")
    metadata = {
        "grid": "x".join(map(str, spec.grid)) if spec.grid else NO_GRID,
        "groups": str(spec.groups),
        "block": str(spec.block),
        "query": spec.query,
        "note": spec.note,
        "recipe": recipe,
        "labels": ",".join(map(str, labels)),
        **({"names": json.dumps(list(names))} if any(names) else {}),
        **instead,
    }
    write_tensors(path, {"images": images, "attention": spec.maps(attention).float()}, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file of the same bytes each time: safetensors alone orders metadata at random."""
    plain = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    length = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + length])
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + plain[8 + length :])


def fidelity(quantized: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """`metrics.cosine` and `metrics.kl` of a query's attention, both [B], means over groups and heads.

    Args:
        quantized, reference: [B, groups, heads, patches], as `AttentionSpec.of_query` gives.
    """
    q, p = quantized.numpy(), reference.numpy()
    cosine, kl = (torch.from_numpy(measure(q, p)) for measure in (metrics.cosine, metrics.kl))
    return cosine.flatten(1).mean(1), kl.flatten(1).mean(1)
