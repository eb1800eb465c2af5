"""Whose attention is read and how it is compared; apart from what needs torch, for the figures use it too."""

from __future__ import annotations

CLASS_TOKEN = "class token"
MEAN_OF_TOKENS = "mean of tokens"
QUERIES = (CLASS_TOKEN, MEAN_OF_TOKENS)
FLOOR = 1e-6  # so that attention that is zero everywhere still is a distribution, the uniform one
NO_GRID = "none"  # in the metadata of attention maps: the tokens make no single grid of patches
ATTENTION = "attention"
ROLLOUT = "attention rollout"
MEASURES = (ATTENTION, ROLLOUT)  # what maps show
