"""The operators of a fused graph, and the vocabulary of their roles."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

# fmt: off
Role = Literal[
    "patch_embed", "pos_add", "norm1", "qkv", "q", "k", "v", "qk", "kv", "attn_scores", "attn_scale",
    "softmax", "attn_context", "proj", "residual1", "norm2", "fc1", "gelu", "fc2", "residual2", "norm",
    "head", "other",
]
# fmt: on
ROLES: tuple[Role, ...] = get_args(Role)


class Operator(NamedTuple):
    """One operator of a fused graph, as fusion.json lists it.

    Attributes:
        role: one of `ROLES`; None where the structure does not tell.
        block: index of the transformer block, None outside the blocks.
    """

    name: str
    type: str
    role: str | None = None
    block: int | None = None
