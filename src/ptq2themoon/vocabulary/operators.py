"""The operators of a fused graph, and the vocabulary of their roles."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, get_args

# fmt: off
Role = Literal[
    "patch_embed", "pos_add", "norm1", "qkv", "q", "k", "v", "qk", "kv", "attn_scores", "attn_scale",
    "softmax", "attn_context", "proj", "residual1", "norm2", "fc1", "gelu", "fc2", "residual2", "norm",
    "head", "other",
]
# fmt: on
ROLES: tuple[Role, ...] = get_args(Role)
# One layer that makes several of query, key and value, and the roles of the layers that it stands for.
JOINT: dict[Role, frozenset[Role]] = {
    "qkv": frozenset(("q", "k", "v")),
    "qk": frozenset(("q", "k")),
    "kv": frozenset(("k", "v")),
}


@cache
def with_joint(roles: tuple[Role, ...]) -> tuple[Role, ...]:
    """These roles, and those of layers that make several of them at once, in the order of `ROLES`."""
    joint = {role for role, parts in JOINT.items() if parts.issubset(roles)}
    return tuple(role for role in ROLES if role in roles or role in joint)


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
