"""A convolution that cuts an image into patches, as the product that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ptq2themoon.deploy.writer import Writer
from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute


@dataclass(frozen=True)
class Patches:
    """Patches that lie side by side.

    Attributes:
        weight: [channels * kh * kw, out].
        grid: rows and columns of patches.
        size: kh, kw.
    """

    weight: np.ndarray
    grid: tuple[int, int]
    size: tuple[int, int]
    channels: int

    @property
    def count(self) -> int:
        """Number of patches in one image."""
        return self.grid[0] * self.grid[1]

    def cut(self, writer: Writer, stem: str, image: str) -> str:
        """[B, C, H, W] to [B, patches, C * kh * kw]."""
        (rows, columns), (kh, kw) = self.grid, self.size
        apart = _reshaped(writer, f"{stem}/apart", image, [0, self.channels, rows, kh, columns, kw])
        together = writer.transposed(f"{stem}/patches", apart, [0, 2, 4, 1, 3, 5])
        return _reshaped(writer, f"{stem}/rows", together, [0, self.count, len(self.weight)])

    def as_image(self, writer: Writer, stem: str, product: str, output: str) -> None:
        """[B, patches, out] to [B, out, rows, columns]."""
        channels_first = writer.transposed(f"{stem}/channels", product, [0, 2, 1])
        _reshaped(writer, f"{stem}/image", channels_first, [0, self.weight.shape[1], *self.grid], output)


def as_patches(graph: Graph, shapes: Shapes, node: NodeProto) -> Patches | None:
    """What a Conv with constant weights cuts, if its patches lie side by side and cover the image."""
    weight, shape = graph.constants[node.input[1]], shapes.get(node.input[0], ())
    if weight.ndim != 4 or len(shape) != 4 or attribute(node, "group", 1) != 1:
        return None
    size, sides = weight.shape[2:], shape[2:]
    plain = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    plain = plain and not any(attribute(node, "pads", [])) and set(attribute(node, "dilations", [1])) == {1}
    if not plain or tuple(attribute(node, "strides", [1, 1])) != size or size == (1, 1):
        return None
    if not all(isinstance(n, int) and n % k == 0 for n, k in zip(sides, size, strict=True)):
        return None
    rows, columns = (int(n) // k for n, k in zip(sides, size, strict=True))
    flat = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
    return Patches(flat, (rows, columns), (size[0], size[1]), weight.shape[1])


def _reshaped(writer: Writer, stem: str, tensor: str, shape: Sequence[int], output: str | None = None) -> str:
    target = writer.constant(f"{stem}/shape", np.array(shape, np.int64))
    return writer.add("Reshape", [tensor, target], stem, output)
