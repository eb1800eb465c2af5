"""Attention rollout: how much of each patch reaches a token of the last block, through all blocks.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020, arXiv 2005.00928. With A_l the
attention of block l, mean of its heads, and the identity for the residual connection,

    R = R_L ... R_2 R_1,    R_l = 0.5 A_l + 0.5 I, each row divided by its sum.

Read is the class token's row of R, or the mean of all rows where there is no class token. Rows of a softmax
sum to one and need no division; those of quantized attention need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ptq2themoon.data.few import FewImages
from ptq2themoon.evaluate.attention import AttentionSpec, save_maps, write_tensors
from ptq2themoon.evaluate.attention_query import ROLLOUT
from ptq2themoon.quantize.simulation import SimulatedModel

NEEDS = "the product over blocks needs all of them to attend over one and the same set of tokens"


def why_undefined(specs: Sequence[AttentionSpec]) -> str:
    """What in a model's blocks forbids a rollout, in a sentence; empty where nothing does."""
    for spec in specs:
        if spec.groups > 1:
            return f"{NEEDS}; block {spec.block} attends within {spec.groups} groups of tokens, each apart"
        if spec.tokens is None:
            return f"{NEEDS}; how many there are in block {spec.block} is not known"
    for before, after in pairwise(specs):
        if (before.tokens, before.prefix_tokens) != (after.tokens, after.prefix_tokens):
            return f"{NEEDS}; block {before.block} has {before.tokens}, block {after.block} {after.tokens}"
    return ""


def rollout(attention: Iterable[Tensor]) -> Tensor:
    """R [B, tokens, tokens], float64, of the head mean [B, tokens, tokens] of each block, in order."""
    first, *others = map(_with_residual, attention)
    product = first
    for each in others:
        product = each @ product
    return product


def _with_residual(mean: Tensor) -> Tensor:
    mixed = 0.5 * mean.double() + 0.5 * torch.eye(mean.shape[-1], dtype=torch.float64)
    return mixed / mixed.sum(-1, keepdim=True)


def run_with_rollout(model: SimulatedModel, images: Tensor, specs: Sequence[AttentionSpec]) -> Tensor:
    """The query's rollout [B, 1, 1, patches] of images [B, C, H, W] in one run (quantized or not)."""
    by_operator = {spec.operator: spec for spec in specs}
    means: list[Tensor] = []

    def keep(name: str, _inputs: list[Tensor], outputs: list[Tensor]) -> None:
        means.append(by_operator[name].of_each(outputs[0], len(part)).mean((1, 2)).cpu())

    found = []
    for part in model.parts(images):
        means.clear()
        model(part, dict.fromkeys(by_operator, keep))
        found.append(specs[-1].of_query(rollout(means)[:, None], len(part)))
    return torch.cat(found)


def save_rollout(
    path: Path, few: FewImages, found: Tensor | None, specs: Sequence[AttentionSpec], recipe: str
) -> None:
    """Maps as those of attention are saved, with one head; without `found`, the images and the reason."""
    if found is None:
        write_tensors(path, {"images": few.pixels}, {"undefined": why_undefined(specs), "recipe": recipe})
        return
    about = {"measure": ROLLOUT, "block": f"{specs[0].block} to {specs[-1].block}"}
    save_maps(path, few.pixels, found, specs[-1], recipe, few.labels, few.names, **about)
