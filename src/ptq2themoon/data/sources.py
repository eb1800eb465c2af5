"""Where images come from: a safetensors file of arrays, or a folder in ImageNet layout."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq2themoon.data.images import MODES, SUFFIXES, check_image, read_image
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.errors import UserError, nearest


class Source(Protocol):
    """Images by key, in an order that no file system decides.

    keys: what a manifest calls the images. labels: int64 [N], -1 where unknown.
    classes: how many the labels tell apart, None when the source does not say.
    files: what determines the content and can be hashed as a whole.
    """

    path: Path

    @property
    def keys(self) -> list[str]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def files(self) -> list[Path]: ...
    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """uint8 [C, H, W] at the model's size; raises `UnreadableImage`."""
        ...

    def check(self, key: str) -> None:
        """Raise `UnreadableImage` when the image can't be decoded."""
        ...


def open_source(kind: str, path: Path) -> Source:
    """Open a source of kind `arrays` or `folder`."""
    if kind == "arrays":
        return ArraySource(path)
    if kind == "folder":
        return FolderSource(path)
    raise UserError(f"kind {kind!r} of {path} is unknown; {nearest(kind, ['arrays', 'folder'])}")


def check_classes(source: Source, num_classes: int) -> None:
    """Refuse to measure accuracy with labels that can't be the model's."""
    if source.labels.min() < 0:
        raise UserError(
            f"{source.path}: images without a label; evaluation needs one class folder or label each"
        )
    found = max(source.classes or 0, int(source.labels.max()) + 1)
    if found > num_classes or (source.classes and source.classes != num_classes):
        raise UserError(
            f"{source.path}: {found} classes, but the model tells {num_classes} apart (num_classes)"
        )


class ArraySource:
    """`images` uint8 [N, C, H, W] and, where known, `labels` [N] in a safetensors file; keys are indices."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, [path]
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: arrays are read from .safetensors files only")
        if not path.is_file():
            raise UserError(f"{path}: not found")
        try:
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: no whole safetensors file: {error}") from error
        self._tensors = set(self._file.keys())
        if "images" not in self._tensors:
            raise UserError(f"{path}: no tensor 'images'; {nearest('images', self._tensors)}")
        self._images = self._file.get_slice("images")
        self.shape: list[int] = self._images.get_shape()
        kind = self._images.get_dtype()
        if kind != "U8" or len(self.shape) != 4 or self.shape[1] not in MODES:
            raise UserError(f"{path}: images: {kind} {self.shape}; U8 [N, 1 or 3, height, width] expected")
        if not self.shape[0]:
            raise UserError(f"{path}: holds no images")

    @property
    def classes(self) -> int | None:
        said = (self._file.metadata() or {}).get("classes", "")
        return int(said) if said.isdecimal() else None

    @cached_property
    def keys(self) -> list[str]:
        return [str(i) for i in range(self.shape[0])]

    @cached_property
    def labels(self) -> np.ndarray:
        count = self.shape[0]
        if "labels" not in self._tensors:
            return np.full(count, -1, dtype=np.int64)
        labels: Tensor = self._file.get_tensor("labels")
        if labels.is_floating_point() or labels.shape != (count,) or int(labels.min()) < -1:
            raise UserError(f"{self.path}: labels: {count} whole numbers expected, -1 where unknown")
        return np.asarray(labels.to(torch.int64))

    def rows(self, start: int, stop: int) -> Tensor:
        """uint8 images [stop - start, C, H, W]; only these are read."""
        images: Tensor = self._images[start:stop]
        return images

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """An array of the model's height and width is taken as it is: no second resize, no crop."""
        if not key.isdecimal() or int(key) >= self.shape[0]:
            raise UserError(f"{self.path}: no image {key!r}; it holds {self.shape[0]}")
        array = self.rows(int(key), int(key) + 1)[0]
        channels, *size = preprocessing.input_size
        fits = self.shape[2:] == size
        if fits and self.shape[1] == channels:
            return array
        pixels = array[0] if self.shape[1] == 1 else array.permute(1, 2, 0)
        image = Image.fromarray(pixels.numpy()).convert(MODES[channels])
        if not fits:
            return preprocessing.crop(image)
        return torch.from_numpy(np.array(image)).view(*size, channels).permute(2, 0, 1)

    def check(self, key: str) -> None:
        """Arrays are whole or the file would not have opened."""


class FolderSource:
    """One folder a class, sorted by name, images at any depth in it; keys are relative paths.

    A flat folder of images has no labels. Names that begin with a dot are no part of it.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.files: list[Path] = []
        if not path.is_dir():
            raise UserError(f"{path}: {'is not a folder' if path.exists() else 'not found'}")

    @cached_property
    def keys(self) -> list[str]:
        found = sorted(self._walk())
        if not found:
            raise UserError(f"{self.path}: no images ({', '.join(sorted(SUFFIXES))})")
        loose = [key for key in found if "/" not in key]
        if loose and len(loose) < len(found):
            raise UserError(f"{self.path}: {len(loose)} images beside the class folders, such as {loose[0]}")
        return found

    def _walk(self) -> list[str]:
        def refuse(error: OSError) -> NoReturn:
            raise UserError(f"{error.filename}: {error.strerror}") from error

        found = []
        for folder, folders, files in os.walk(self.path, followlinks=True, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(folder).relative_to(self.path)
            found += [
                (inside / name).as_posix()
                for name in files
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
            ]
        return found

    @cached_property
    def _names(self) -> list[str]:
        """Class folders, empty ones too: they count in the labels of the others."""
        if "/" not in self.keys[0]:
            return []
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith("."))

    @property
    def classes(self) -> int | None:
        return len(self._names) or None

    @cached_property
    def labels(self) -> np.ndarray:
        index = {name: i for i, name in enumerate(self._names)}
        return np.array(
            [index.get(key.partition("/")[0], -1) if index else -1 for key in self.keys], dtype=np.int64
        )

    def listing_sha256(self) -> str:
        """Identity of the list of images (not of their bytes)."""
        return hashlib.sha256("\n".join(self.keys).encode("utf-8", "surrogateescape")).hexdigest()

    def _file(self, key: str) -> Path:
        inside = PurePosixPath(key)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{key}: outside of {self.path}")
        return self.path / inside

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        return preprocessing.crop(read_image(self._file(key), key, preprocessing.input_size[0]))

    def check(self, key: str) -> None:
        check_image(self._file(key), key)
