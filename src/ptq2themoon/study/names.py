"""What the study's tables name: kinds of tokens, quantizers, blocks. Without torch, for figures too."""

from __future__ import annotations

from ptq2themoon.errors import UserError

ALL, PATCH, CLASS = "all", "patch", "class"
KINDS = (CLASS, PATCH)

PER_TENSOR, PER_CHANNEL = "per tensor", "per channel"
QUANTIZERS = (PER_TENSOR, PER_CHANNEL)


def block_index(block: int, count: int, name: str) -> int:
    """The index of a block from 0; a negative one counts from the end.

    Raises:
        UserError: a block that the model does not have.
    """
    if not -count <= block < count:
        nearest = min(max(block, -count), count - 1)
        raise UserError(f"{name} {block}: the model has {count} blocks; nearest valid: {nearest}")
    return block % count
