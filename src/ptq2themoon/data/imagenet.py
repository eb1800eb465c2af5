"""Class folders of ImageNet-1k: by WordNet id or by index, to the index that models give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ptq2themoon.vocabulary.errors import UserError, nearest

CLASSES = 1000


def imagenet_labels(names: Iterable[str], folder: Path) -> dict[str, int]:
    """Index of the class of each folder, by its name (`n01440764` or `0`); not all need to be there."""
    from timm.data import ImageNetInfo  # timm takes seconds to import

    ids = {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    found: dict[str, int] = {}
    owners: dict[int, str] = {}
    for name in names:
        index = int(name) if name.isascii() and name.isdecimal() else ids.get(name)
        if index is None or index >= CLASSES:
            raise UserError(f"{folder / name}: no class of ImageNet-1k; {_hint(name, ids)}")
        if index in owners:
            raise UserError(f"{folder}: {owners[index]} and {name} are both class {index}; keep one")
        found[name], owners[index] = index, name
    return found


def _hint(name: str, ids: Iterable[str]) -> str:
    if name.isdecimal():
        return f"valid indices: 0 to {CLASSES - 1}"
    close = nearest(name, ids)
    return close if close.startswith("did") else "a WordNet id such as 'n01440764' or an index expected"
