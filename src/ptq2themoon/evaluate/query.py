"""Whose attention is read; apart from what needs torch, for the figures name it too."""

from __future__ import annotations

CLASS_TOKEN = "class token"
MEAN_OF_TOKENS = "mean of tokens"
QUERIES = (CLASS_TOKEN, MEAN_OF_TOKENS)
NO_GRID = "none"  # in the metadata of attention maps: the tokens make no single grid of patches
