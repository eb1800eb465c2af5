"""torchvision's data sets from local files; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.data.images import check_image, read_image
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.sources import fit_array, is_index
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.torchvision_names import TRAIN_FLAG, parse_torchvision

# What torchvision raises when files are absent, cut or of another make.
ABSENT = (RuntimeError, OSError, ValueError, EOFError, AssertionError, KeyError, IndexError)


class TorchvisionSource:
    """`path` is NAME:SPLIT:ROOT; keys are indices in torchvision's own order.

    Only the list of images is torchvision's. Arrays (CIFAR10, MNIST, ...) are taken as those of
    `ArraySource`, files (Food101, DTD, ...) are read as those of a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, parse_torchvision(path.as_posix())
        self.files: list[Path] = []
        found = self._open()
        self.classes: int | None = len(found.classes) if hasattr(found, "classes") else None
        self._arrays: np.ndarray | None = None
        self._paths: Sequence[Path] = []
        if hasattr(found, "data"):
            self._arrays = _channels_first(np.asarray(found.data))
            labels = found.targets if hasattr(found, "targets") else found.labels
        else:
            paths, labels = _listed(found)
            self._paths = [Path(path) for path in paths]
        self.labels = np.asarray(labels, dtype=np.int64)
        if len(self.labels) != len(self.keys) or not len(self.labels):
            raise UserError(f"{path}: {len(self.labels)} labels for {len(self.keys)} images; {self._advice}")

    @property
    def _advice(self) -> str:
        """How the files get there: torchvision knows where each of its data sets wants them."""
        name, split, root = self.name
        part = f"train={split == 'train'}" if name in TRAIN_FLAG else f"split={split!r}"
        return (
            f"place them as torchvision does, once and online: "
            f'python -c "import torchvision; torchvision.datasets.{name}({root!r}, {part}, download=True)"'
        )

    def _open(self) -> Any:
        from torchvision import datasets  # takes seconds to import

        name, split, root = self.name
        part: dict[str, Any] = {"train": split == "train"} if name in TRAIN_FLAG else {"split": split}
        try:
            return getattr(datasets, name)(root, **part, download=False)
        except ABSENT as error:
            what = f"the files of {name} are not in {root}, or not whole"
            raise UserError(f"{self.path}: {what}; {self._advice}") from error

    @cached_property
    def keys(self) -> list[str]:
        """Indices of the images, from 0, as text."""
        count = len(self._paths) if self._arrays is None else len(self._arrays)
        return [str(i) for i in range(count)]

    def identity(self) -> dict[str, str]:
        """Of arrays their pixels, of files their list; both with the labels."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        if self._arrays is not None:
            digest.update(np.ascontiguousarray(self._arrays).tobytes())
        for path in self._paths:
            digest.update(f"{path.as_posix()}\n".encode("utf-8", "surrogateescape"))
        return {"content_sha256": digest.hexdigest()}

    def _index(self, key: str) -> int:
        if not is_index(key, len(self.keys)):
            raise UserError(f"{self.path}: no image {key[:40]!r}; it holds {len(self.keys)}")
        return int(key)

    def _file(self, index: int) -> tuple[Path, str]:
        path = self._paths[index]
        root = Path(self.name.root)
        return path, (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """uint8 [C, H, W] of image `key`, at the model's size; raises `UnreadableImage`."""
        index = self._index(key)
        if self._arrays is not None:
            return fit_array(torch.from_numpy(self._arrays[index].copy()), preprocessing)
        path, name = self._file(index)
        return preprocessing.crop(read_image(path, name, preprocessing.input_size[0]), name)

    def check(self, key: str, preprocessing: Preprocessing | None = None) -> None:
        """Raise `UnreadableImage` where the file of image `key` is no whole image."""
        if self._arrays is None:
            path, name = self._file(self._index(key))
            size = check_image(path, name)
            if preprocessing is not None:
                preprocessing.check_size(size, name)


def _channels_first(arrays: np.ndarray) -> np.ndarray:
    """uint8 [N, C, H, W] from that, [N, H, W] or [N, H, W, 3]."""
    if arrays.ndim == 3:
        return arrays[:, None]
    return arrays.transpose(0, 3, 1, 2) if arrays.shape[-1] == 3 else arrays


def _listed(found: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """Paths and labels; torchvision 0.29 keeps them in one of these attributes."""
    for name in ("samples", "_samples"):
        if hasattr(found, name):
            pairs = getattr(found, name)
            return [path for path, _ in pairs], [label for _, label in pairs]
    paths: Sequence[Any] = found._image_files if hasattr(found, "_image_files") else found._images
    labels: Sequence[int] = found._labels
    return paths, labels
