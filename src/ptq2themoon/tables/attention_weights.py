"""The numbers that the attention figures show, as tables: every weight drawn, every similarity printed.

`image` and `head` count from 0 as in the figure; `query` is whose attention it is. Attention that makes no
map has one row per recipe: its cosine similarity and KL divergence with the first graph's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ptq2themoon.evaluate.attention_maps import (
    AttentionMaps,
    check_image_index,
    check_same_images,
    map_similarity,
    similarity_of_heads,
    told_apart,
)
from ptq2themoon.evaluate.metrics import Array

MAP = ["row", "column", "weight", "cosine"]
NUMBERS = ["cosine", "kl"]
Maps = Mapping[str, AttentionMaps]


def overview_table(maps: Maps, rows: int) -> pd.DataFrame:
    """Of `attention_overview`: the head mean of the first `rows` images."""
    check_same_images(maps)
    reference = next(iter(maps.values()))
    found = []
    for image in range(min(rows, len(reference.images))):
        if reference.is_map:
            means = {name: each.attention[image].mean(axis=0) for name, each in maps.items()}
            found += [{"image": image, **row} for row in _weights(means)]
        else:
            found += [
                {"image": image, "recipe": name, "cosine": cosine.mean(), "kl": kl.mean()}
                for name, (cosine, kl) in _against_the_first(maps, image)
            ]
    return _table(found, ["image", "recipe"], reference)


def heads_table(maps: Maps, index: int) -> pd.DataFrame:
    """Of `attention_heads`: every head for the image at `index`."""
    check_same_images(maps)
    reference = next(iter(maps.values()))
    check_image_index(index, reference)
    found = []
    for head in range(reference.heads):
        place = {"image": index, "head": head}
        if reference.is_map:
            weights = {name: each.attention[index, head] for name, each in maps.items()}
            found += [{**place, **row} for row in _weights(weights)]
        else:
            found += [
                {**place, "recipe": name, "cosine": cosine[head], "kl": kl[head]}
                for name, (cosine, kl) in _against_the_first(maps, index)
            ]
    return _table(found, ["image", "head", "recipe"], reference)


def rollout_table(rollouts: Mapping[str, AttentionMaps | str], rows: int) -> pd.DataFrame:
    """Of `attention_rollout`: every weight of the first `rows` images, or the reason why there is none."""
    maps, reason = told_apart(rollouts)
    return pd.DataFrame({"reason": [reason]}) if reason else overview_table(maps, rows)


def _weights(maps: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
    """One row per patch of each map, with the map's cosine similarity with the first."""
    first = next(iter(maps.values()))
    for name, weights in maps.items():
        cosine = map_similarity(first, weights)
        for (row, column), weight in np.ndenumerate(weights):
            yield {"recipe": name, "row": row, "column": column, "weight": weight, "cosine": cosine}


def _against_the_first(maps: Maps, index: int) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """(recipe, (cosine, KL) of every head)."""
    (_, reference), *others = maps.items()
    for name, other in others:
        yield name, similarity_of_heads(reference, other, index)


def _table(rows: list[dict[str, Any]], keys: list[str], reference: AttentionMaps) -> pd.DataFrame:
    values = MAP if reference.is_map else NUMBERS
    return pd.DataFrame(rows, columns=[*keys, *values]).assign(query=reference.query)
