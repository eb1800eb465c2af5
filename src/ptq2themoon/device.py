"""Where tensors are computed."""

from __future__ import annotations

import torch

from ptq2themoon.vocabulary.errors import UserError


def resolve_device(name: str) -> str:
    """`auto` is a GPU when torch sees one.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    return name
