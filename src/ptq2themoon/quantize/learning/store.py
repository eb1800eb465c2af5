"""The tensors of all images at one place of a graph, in memory or in files when they are large."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor


class Store:
    """Tensors by name; those with the images on the first axis are kept in one piece for all images.

    An image may have several indices of that axis, one after another, as windows have.

    Beyond its budget a tensor lies in a file of a temporary folder, which ends with the store.

    Args:
        images: how many there are.
        per_image: how many indices of the first axis an image has, of tensors that have the images there;
            others are equal for all.
        budget: bytes in memory.
    """

    def __init__(self, images: int, per_image: Mapping[str, int], budget: int) -> None:
        self.images, self.per_image, self._left = images, dict(per_image), budget
        self._values: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, start: int, values: Mapping[str, Tensor]) -> None:
        """Keep the tensors of the images from `start` on."""
        for name, value in values.items():
            value = value.detach().cpu()
            if name not in self.per_image:
                self._values[name] = value
                continue
            if name not in self._values:
                shape = self.images, self.per_image[name], *value.shape[1:]
                self._values[name] = self._room(name, shape, value.dtype)
            value = self.by_image(name, value)
            self._values[name][start : start + len(value)] = value

    def get(self, names: Iterable[str], index: Tensor | slice, device: str) -> dict[str, Tensor]:
        """The tensors of some images, copied to a device."""
        found = {}
        for name in names:
            value = self._values[name]
            found[name] = (value[index].flatten(0, 1) if name in self.per_image else value).to(device)
        return found

    def keep(self, names: Iterable[str]) -> None:
        """Forget all tensors but these."""
        wanted = set(names)
        for name in [name for name in self._values if name not in wanted]:
            del self._values[name]
            self._left += self._sizes.pop(name, 0)
            if self._folder is not None:
                self._file(name).unlink(missing_ok=True)

    def by_image(self, name: str, value: Tensor) -> Tensor:
        """A tensor [images * indices of each, ...] as [images, indices, ...]."""
        return value.unflatten(0, (-1, self.per_image[name]))

    @property
    def in_files(self) -> bool:
        """Whether the budget was ever exceeded."""
        return self._folder is not None

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        if size <= self._left:
            self._left -= size
            self._sizes[name] = size
            return torch.empty(shape, dtype=dtype)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptq2themoon-")
        count = torch.Size(shape).numel()
        return torch.from_file(str(self._file(name)), shared=True, size=count, dtype=dtype).reshape(shape)

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / name.encode().hex()[-200:]
