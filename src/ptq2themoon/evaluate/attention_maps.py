"""Attention maps of a few images, as the stages before wrote them: read, checked and compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ptq2themoon.evaluate import metrics
from ptq2themoon.evaluate.attention_query import ATTENTION, CLASS_TOKEN, MEASURES, NO_GRID, QUERIES
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.model_info import ModelInfo


@dataclass(frozen=True)
class AttentionMaps:
    """The class token's attention to the patches, or that of all tokens, for a few images, from one graph.

    Attributes:
        images: uint8 [N, C, H, W].
        attention: float32 [N, heads, rows, columns], softmax weights (those to the class token left out);
            [N, heads, groups, patches] where they make no map.
        labels: class index of each image, -1 when unknown.
        names: of each image's class as the data set has it; none where it has none.
        block: index of the transformer block; of a rollout `FIRST to LAST`.
        query: whose attention, one of `QUERIES`.
        note: what is treated as class token, or that there is none and why.
        groups: sets of tokens that attend apart; a map is the mean over them.
        is_map: whether the patches have a place in the image.
        measure: what is shown, one of `MEASURES`.
    """

    images: npt.NDArray[np.uint8]
    attention: npt.NDArray[np.float32]
    labels: tuple[int, ...]
    block: str
    query: str = CLASS_TOKEN
    note: str = ""
    groups: int = 1
    is_map: bool = True
    names: tuple[str, ...] = ()
    measure: str = ATTENTION

    @property
    def heads(self) -> int:
        """Number of heads in the maps."""
        return int(self.attention.shape[1])


def read_label_names(path: Path) -> list[str] | None:
    """Class names from a JSON list, or from `label_names` of a model.json (null: none)."""
    try:
        data = records.parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if isinstance(data, dict):
        return records.read(path, ModelInfo).label_names
    if not (isinstance(data, list) and all(isinstance(name, str) for name in data)):
        raise UserError(f"{path}: class names must be a list of strings")
    return data


def read_maps(path: Path) -> AttentionMaps:
    """Attention maps from a safetensors file with `images`, `attention` and their metadata."""
    tensors, metadata = _read(path)
    for key in ("attention", "images"):
        if key not in tensors:
            raise UserError(f"{path}: no tensor {key!r}; found: {', '.join(tensors) or 'none'}")
    return _checked_maps(path, tensors["images"], tensors["attention"], metadata)


def read_rollout(path: Path) -> AttentionMaps | str:
    """Rollout maps from a safetensors file; of a model that has no rollout, the reason."""
    return _read(path)[1].get("undefined") or read_maps(path)


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _checked_maps(
    path: Path, images: npt.NDArray[np.uint8], attention: npt.NDArray[np.float32], metadata: Mapping[str, str]
) -> AttentionMaps:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8:
        raise UserError(
            f"{path}: 'images' is {images.dtype} {list(images.shape)}; expected uint8 [N, 1 or 3, H, W]"
        )
    if attention.ndim != 3 or len(attention) != len(images) or 0 in attention.shape:
        raise UserError(
            f"{path}: 'attention' is {list(attention.shape)}; expected [{len(images)}, heads, patches]"
        )
    if not np.isfinite(attention).all():
        raise UserError(f"{path}: 'attention' holds values that are not finite")
    groups = _groups(path, metadata)
    is_map = metadata.get("grid") != NO_GRID
    size = _grid(path, metadata, attention.shape[2]) if is_map else (groups, -1)
    if not is_map and attention.shape[2] % groups:
        raise UserError(f"{path}: {attention.shape[2]} patches in 'attention' make no {groups} groups")
    return AttentionMaps(
        images=images,
        attention=attention.reshape(*attention.shape[:2], *size),
        labels=_labels(path, metadata, len(images)),
        block=metadata.get("block", "?"),
        query=_one_of(path, metadata, "query", QUERIES),
        note=metadata.get("note", ""),
        groups=groups,
        is_map=is_map,
        names=_names(path, metadata, len(images)),
        measure=_one_of(path, metadata, "measure", MEASURES, ATTENTION),
    )


def _one_of(
    path: Path, metadata: Mapping[str, str], key: str, valid: Collection[str], otherwise: str = ""
) -> str:
    value = metadata.get(key, otherwise)
    if value not in valid:
        raise UserError(f"{path}: metadata {key!r} is {value!r}; {nearest(value, valid)}")
    return value


def _grid(path: Path, metadata: Mapping[str, str], patches: int) -> tuple[int, int]:
    text = metadata.get("grid", "")
    try:
        rows, columns = (int(size) for size in text.split("x"))
    except ValueError:
        raise UserError(f"{path}: metadata 'grid' is {text!r}; expected ROWSxCOLUMNS, as in '7x7'") from None
    if rows * columns != patches:
        raise UserError(f"{path}: metadata 'grid' is {text!r}, but 'attention' has {patches} patches")
    return rows, columns


def _groups(path: Path, metadata: Mapping[str, str]) -> int:
    text = metadata.get("groups", "")
    if not text.isdecimal() or not int(text):
        raise UserError(f"{path}: metadata 'groups' is {text!r}; expected a whole number from 1 on")
    return int(text)


def _labels(path: Path, metadata: Mapping[str, str], images: int) -> tuple[int, ...]:
    text = metadata.get("labels", "")
    try:
        labels = tuple(int(label) for label in text.split(",")) if text else (-1,) * images
    except ValueError:
        raise UserError(f"{path}: metadata 'labels' is {text!r}; expected integers, as in '0,1,2'") from None
    if len(labels) != images:
        raise UserError(f"{path}: metadata 'labels' names {len(labels)} labels for {images} images")
    return labels


def _names(path: Path, metadata: Mapping[str, str], images: int) -> tuple[str, ...]:
    try:
        names = records.parsed(metadata.get("names", "[]"))
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) not in (0, images):
        raise UserError(f"{path}: metadata 'names' is no list of {images} class names")
    return tuple(map(str, names))


def told_apart(rollouts: Mapping[str, AttentionMaps | str]) -> tuple[dict[str, AttentionMaps], str]:
    """The maps that `read_rollout` gave, and the reason why a graph has none; empty where all have one."""
    maps = {name: each for name, each in rollouts.items() if not isinstance(each, str)}
    return maps, next((each for each in rollouts.values() if isinstance(each, str)), "")


def check_same_images(maps: Mapping[str, AttentionMaps]) -> None:
    """`UserError` unless all maps are of the same images, block, heads and grid."""
    (first, reference), *others = maps.items()
    for name, other in others:
        if other.images.shape != reference.images.shape:
            raise UserError(
                f"--maps {name}: images {list(other.images.shape)} differ from {first}'s "
                f"{list(reference.images.shape)}; draw all maps from the same images"
            )
        different = np.flatnonzero((other.images != reference.images).any(axis=(1, 2, 3)))
        if different.size:
            raise UserError(
                f"--maps {name}: image {different[0]} is not {first}'s; draw all maps from the same images"
            )
        if _place(other) != _place(reference):
            raise UserError(f"--maps {name}: {_place(other)}; {first} has {_place(reference)}")


def _place(maps: AttentionMaps) -> str:
    size = "x".join(map(str, maps.attention.shape[2:]))
    what = "grid" if maps.is_map else "groups and tokens"
    return f"block {maps.block}, {maps.heads} heads, {what} {size}, {maps.measure} of {maps.query}"


def check_image_index(index: int, maps: AttentionMaps) -> None:
    """Refuse an image that the maps do not hold."""
    count = len(maps.images)
    if not 0 <= index < count:
        raise UserError(f"--image-index {index}: the maps hold {count} images; valid: 0 to {count - 1}")


def map_similarity(a: metrics.Array, b: metrics.Array) -> float:
    """Cosine similarity of two maps taken as vectors; 0 when one of them is all zero."""
    return float(metrics.cosine(a.ravel(), b.ravel()))


def similarity_of_heads(
    reference: AttentionMaps, other: AttentionMaps, index: int
) -> tuple[metrics.Array, metrics.Array]:
    """Cosine similarity and KL(other || reference) in nats of each head, means over groups."""
    q, p = other.attention[index], reference.attention[index]
    return metrics.cosine(q, p).mean(axis=1), metrics.kl(q, p).mean(axis=1)
