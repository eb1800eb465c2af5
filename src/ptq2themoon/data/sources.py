"""Where images come from: a safetensors file of arrays, or files in one folder per class."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq2themoon.data.imagenet import CLASSES as IMAGENET_CLASSES
from ptq2themoon.data.imagenet import imagenet_labels
from ptq2themoon.data.images import MAX_RATIO, MODES, check_image, read_image
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.tensor_rows import TensorRows
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.image_folders import (
    SUFFIXES,
    ClassOrder,
    Entry,
    class_folders,
    entries,
    order_problem,
    ordered,
    summary,
)

IMAGENET = "imagenet"
MOST_IMAGES = 20_000_000  # ImageNet-21k has 14 million
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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
    def identity(self) -> dict[str, str]:
        """What is recorded of content that `files` don't tell: hashes, by name."""
        ...

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """uint8 [C, H, W] at the model's size; raises `UnreadableImage`."""
        ...

    def check(self, key: str, preprocessing: Preprocessing | None = None) -> None:
        """Raise `UnreadableImage` when the image can't be decoded, or not be brought to the model's size."""
        ...


def fit_array(array: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] for the model; one of its height and width is kept: no second resize, no crop."""
    channels, *size = preprocessing.input_size
    fits = list(array.shape[1:]) == size
    if fits and array.shape[0] == channels:
        return array
    pixels = array[0] if array.shape[0] == 1 else array.permute(1, 2, 0)
    image = Image.fromarray(pixels.numpy()).convert(MODES[channels])
    if not fits:
        return preprocessing.crop(image)
    return torch.from_numpy(np.array(image)).view(*size, channels).permute(2, 0, 1)


def is_index(key: str, images: int) -> bool:
    """Whether a key is the index of one of so many images."""
    return key.isascii() and key.isdecimal() and len(key) <= 9 and int(key) < images


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
        found = self._file.get_slice("images")
        self.shape: list[int] = found.get_shape()
        kind = found.get_dtype()
        if kind != "U8" or len(self.shape) != 4 or self.shape[1] not in MODES:
            raise UserError(f"{path}: images: {kind} {self.shape}; U8 [N, 1 or 3, height, width] expected")
        if not 0 < self.shape[0] <= MOST_IMAGES:
            what = f"more than {MOST_IMAGES} images" if self.shape[0] else "no images"
            raise UserError(f"{path}: holds {what}")
        height, width = self.shape[2:]
        if not min(height, width) or max(height, width) > MAX_RATIO * min(height, width):
            raise UserError(f"{path}: images: {self.shape}; heights and widths as of pictures expected")
        self._images = TensorRows(path, "images")

    @property
    def classes(self) -> int | None:
        """Number of classes in the file's metadata; None where it does not say."""
        said = (self._file.metadata() or {}).get("classes", "")
        return int(said) if said.isdecimal() and len(said) < 10 else None

    @cached_property
    def keys(self) -> list[str]:
        """Indices of the images, from 0, as text."""
        return [str(i) for i in range(self.shape[0])]

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each image, int64 [images]; -1 where unknown."""
        count = self.shape[0]
        if "labels" not in self._tensors:
            return np.full(count, -1, dtype=np.int64)
        labels: Tensor = self._file.get_tensor("labels")
        if labels.dtype not in WHOLE or labels.shape != (count,) or int(labels.min()) < -1:
            raise UserError(f"{self.path}: labels: {count} whole numbers expected, -1 where unknown")
        return np.asarray(labels.to(torch.int64))

    def identity(self) -> dict[str, str]:
        """Nothing: the file itself is among `files`."""
        return {}

    def rows(self, start: int, stop: int) -> Tensor:
        """uint8 images [stop - start, C, H, W]; only these are read."""
        return self._images[start:stop]

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """uint8 [C, H, W] of image `key`, fitted to the model's size."""
        if not is_index(key, self.shape[0]):
            raise UserError(f"{self.path}: no image {key[:40]!r}; it holds {self.shape[0]}")
        return fit_array(self.rows(int(key), int(key) + 1)[0], preprocessing)

    def check(self, key: str, preprocessing: Preprocessing | None = None) -> None:
        """Arrays are whole or the file would not have opened."""
        if preprocessing is not None:
            preprocessing.check_size((self.shape[3], self.shape[2]), key)


class ImageFiles:
    """Image files under `root`; keys are paths relative to it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.files: list[Path] = []

    def identity(self) -> dict[str, str]:
        return {}

    def _file(self, key: str) -> Path:
        inside = PurePosixPath(key)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{key}: outside of {self.root}")
        return self.root / inside

    def pixels(self, key: str, preprocessing: Preprocessing) -> Tensor:
        """uint8 [C, H, W] of file `key`, resized and cropped; raises `UnreadableImage`."""
        return preprocessing.crop(read_image(self._file(key), key, preprocessing.input_size[0]), key)

    def check(self, key: str, preprocessing: Preprocessing | None = None) -> None:
        """Raise `UnreadableImage` where file `key` is no whole image, or too thin for the model."""
        size = check_image(self._file(key), key)
        if preprocessing is not None:
            preprocessing.check_size(size, key)


class FolderSource(ImageFiles):
    """One folder per class, images at any depth in it.

    The label is the folder's place among all, sorted by name as torchvision's ImageFolder does, or in the
    order `natural` by numbers and without case as timm does; with the naming `imagenet` it is the class of
    ImageNet-1k that the name stands for, by WordNet id or index. A flat folder of images has no labels.
    Names that begin with a dot are no part of it.
    """

    def __init__(self, path: Path, naming: str | None = None, order: ClassOrder | None = None) -> None:
        super().__init__(path, path)
        self.naming, self.order = naming, order
        if naming not in (None, IMAGENET):
            raise UserError(f"{path}: classes {naming!r} are unknown; {nearest(naming, [IMAGENET])}")
        if not path.is_dir():
            raise UserError(f"{path}: {'is not a folder' if path.exists() else 'not found'}")

    @cached_property
    def keys(self) -> list[str]:
        """Paths of all images inside the folder, sorted."""
        found = sorted(entry.key for entry in self._entries if not entry.passed_over)
        if not found:
            kinds = ", ".join(sorted(SUFFIXES))
            other = f", only {summary(self.passed_over)}" if self.passed_over else ""
            what = f"no images ({kinds}){other}"
            raise UserError(f"{self.path}: {what}; put there one folder of them per class")
        loose = [key for key in found if "/" not in key]
        if loose and len(loose) < len(found):
            raise UserError(f"{self.path}: {len(loose)} images beside the class folders, such as {loose[0]}")
        return found

    @cached_property
    def _entries(self) -> list[Entry]:
        return list(entries(self.path))

    @property
    def passed_over(self) -> list[Entry]:
        """Files that are not read, with the reason."""
        return sorted(entry for entry in self._entries if entry.passed_over)

    @property
    def empty_classes(self) -> list[str]:
        """Class folders without an image, which keep their places among the labels."""
        filled = {key.partition("/")[0] for key in self.keys}
        return [name for name in self._names if name not in filled]

    @cached_property
    def _names(self) -> list[str]:
        """Class folders, empty ones too: they count in the labels of the others."""
        if "/" not in self.keys[0]:
            return []
        return ordered(class_folders(self.path), self.order)

    @cached_property
    def _indices(self) -> dict[str, int]:
        if self.naming == IMAGENET:
            return imagenet_labels(self._names, self.path)
        return {name: i for i, name in enumerate(self._names)}

    @property
    def classes(self) -> int | None:
        """Number of classes: ImageNet's, or that of the class folders; None for a flat folder."""
        if self._names and self.naming == IMAGENET:
            return IMAGENET_CLASSES
        return len(self._names) or None

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each image by its folder, int64 [images]; -1 in a flat folder."""
        # Of a flat folder, which has no names, the keys are no class either.
        return np.array([self._indices.get(key.partition("/")[0], -1) for key in self.keys], dtype=np.int64)

    def check_order(self) -> None:
        """Refuse class folders that text and numbers order differently, unless it is said which counts."""
        if self.naming is None and self.order is None and (problem := order_problem(self._names)):
            raise UserError(f"{self.path}: {problem}")

    def identity(self) -> dict[str, str]:
        """The sum of the list of images."""
        return {"listing_sha256": self.listing_sha256()}

    def class_name(self, key: str) -> str:
        """The folder that an image lies in; empty in a flat folder."""
        folder, slash, _ = key.partition("/")
        return folder.encode(errors="replace").decode() if slash else ""

    def listing_sha256(self) -> str:
        """Identity of the list of images (not of their bytes)."""
        return hashlib.sha256("\n".join(self.keys).encode("utf-8", "surrogateescape")).hexdigest()
