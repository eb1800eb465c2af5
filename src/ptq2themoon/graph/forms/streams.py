"""Residual streams: tensors that hold one set of channels, what writes them, and what reads them.

A stream is everything that additions and data movement join: the sum that runs through the transformer
blocks, with the embeddings that it begins with. It can be rotated, x -> x R, when linear layers,
convolutions and constants alone write it, and LayerNorms alone read it, whose own readers are linear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT, LINEAR_TYPES, data_inputs
from ptq2themoon.graph.forms.layouts import Layout, channel_axis_of, moved, on_axis
from ptq2themoon.graph.forms.linear import as_linear
from ptq2themoon.vocabulary.errors import UserError

PASSING = DATA_MOVEMENT | {"ReduceMean"}


@dataclass
class Stream:
    """One set of channels, and the operators at its borders, by name.

    Attributes:
        writers: linear layers and convolutions that write it.
        factors: of each channel of what a writer gives, as LayerScale has them, and the operator that
            multiplies by them; by writer.
        constants: axis from the end, by operator and position among its inputs: embeddings, biases.
        readers: what reads each LayerNorm of the stream: linear layers and convolutions.
        padded: LayerNorms beside whose values zeros are put before their readers.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    factors: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    constants: dict[tuple[str, int], int] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    padded: set[str] = field(default_factory=set)


class NoRotationError(UserError):
    """A stream that cannot be rotated, with the reason as its text."""


def residual_streams(graph: Graph, shapes: Shapes, norms: Iterable[str]) -> list[Stream]:
    """The streams that these LayerNorms read, each once, in graph order.

    Args:
        shapes: of one image.

    Raises:
        NoRotationError: something else writes or reads one of them.
    """
    nodes = {node.name: node for node in graph.nodes}
    found: list[Stream] = []
    for name in norms:
        if not any(name in stream.readers for stream in found):
            found.append(_Growing(graph, shapes, nodes[name]).stream)
    return found


class _Growing:
    """A stream that grows from one LayerNorm over all that additions and data movement join."""

    def __init__(self, graph: Graph, shapes: Shapes, norm: NodeProto) -> None:
        self.graph, self.shapes = graph, shapes
        tensor = norm.input[0]
        layout = on_axis(shapes.get(tensor, ()), -1)
        if layout is None:
            raise NoRotationError(f"the shape of what {norm.name!r} reads is not known")
        self.stream = Stream(int(shapes[tensor][-1]))
        self.layouts: dict[str, Layout] = {tensor: layout}
        self.waiting = [tensor]
        while self.waiting:
            tensor = self.waiting.pop()
            self._back(tensor)
            for node in graph.consumers(tensor):
                self._forth(node, tensor)
            if tensor in graph.outputs:
                raise NoRotationError("the model gives the residual stream itself as its output")

    def _join(self, node: NodeProto, tensor: str, layout: Layout | None) -> None:
        """Let a tensor be part of the stream; a constant of it is rotated where it stands."""
        if layout is None:
            raise _no_rotation(node, "joins its channels with others")
        if tensor in self.graph.constants:
            axis = channel_axis_of(layout)
            if axis is None:
                raise _no_rotation(node, "reads a constant without them")
            self.stream.constants[node.name, list(node.input).index(tensor)] = axis
        elif tensor not in self.layouts:
            self.layouts[tensor] = layout
            self.waiting.append(tensor)

    def _back(self, tensor: str) -> None:
        node, layout = self.graph.producer(tensor), self.layouts[tensor]
        if node is None:
            raise NoRotationError("the images themselves are part of it")
        if node.op_type in PASSING:
            for name in data_inputs(node):
                if name not in self.layouts:
                    self._join(node, name, self._moved(node, layout, name, back=True))
        elif node.op_type == "Add":
            self._summands(node, layout)
        elif (factor := self._factor(node)) is not None:
            self._scaled(node, *factor)
        elif node.op_type in (*LINEAR_TYPES, "Conv"):
            self._written(node, layout)
        else:
            raise _no_rotation(node, "writes it")

    def _forth(self, node: NodeProto, tensor: str) -> None:
        layout = self.layouts[tensor]
        if node.op_type == "Shape":
            return
        if node.op_type == "LayerNormalization" and list(node.input).index(tensor) == 0:
            self._read(node, layout)
        elif node.op_type in PASSING and tensor in data_inputs(node):
            for name in node.output:
                if name not in self.layouts:
                    self._join(node, name, self._moved(node, layout, name, back=False))
        elif node.op_type == "Add":
            sizes = self.shapes.get(node.output[0], ())
            self._join(node, node.output[0], layout if len(sizes) == len(layout) else None)
        elif self._factor(node) is not None and self._factor(node)[1].size == 1:  # type: ignore[index]
            self._join(node, node.output[0], layout)
        else:
            raise _no_rotation(node, "reads it without a LayerNorm")

    def _moved(self, node: NodeProto, layout: Layout, to: str, *, back: bool) -> Layout | None:
        return moved(self.graph, self.shapes, node, layout, self.stream.channels, to, back=back)

    def _summands(self, node: NodeProto, layout: Layout) -> None:
        """Both have the channels where the sum has them; a constant may lack outer axes."""
        axis = channel_axis_of(layout)
        for name in node.input:
            shape = self.shapes.get(name, ())
            if name not in self.graph.constants:
                same = shape == self.shapes.get(node.output[0])
                self._join(node, name, layout if same else None)
            else:
                fits = axis is not None and -axis <= len(shape) and shape[axis] == self.stream.channels
                self._join(node, name, on_axis(shape, axis) if fits and axis is not None else None)

    def _factor(self, node: NodeProto) -> tuple[str, np.ndarray] | None:
        """(tensor, factor) of a multiplication or division by a constant."""
        operands = self.graph.split_operands(node) if node.op_type in ("Mul", "Div") else None
        if operands is None or (node.op_type == "Div" and node.input[0] != operands[0]):
            return None
        factor = operands[1].astype(np.float64)
        return operands[0], 1 / factor if node.op_type == "Div" else factor

    def _scaled(self, node: NodeProto, tensor: str, factor: np.ndarray) -> None:
        """Before one factor the stream goes on; one for each channel goes into the layer before."""
        layout = self.layouts[node.output[0]]
        if factor.size == 1:
            self._join(node, tensor, layout)
            return
        maker = self.graph.producer(tensor)
        alone = len(self.graph.consumers(tensor)) == 1 and tensor not in self.graph.outputs
        linear = as_linear(self.graph, maker) if maker is not None else None
        sizes = {size for size in factor.shape if size != 1}
        if linear is None or not alone or channel_axis_of(layout) != -1 or factor.shape[-1:] != tuple(sizes):
            raise _no_rotation(node, "scales its channels")
        self._written(maker, layout)  # type: ignore[arg-type]
        self.stream.factors[linear.name] = node.name, factor.reshape(-1)

    def _written(self, node: NodeProto, layout: Layout) -> None:
        linear = as_linear(self.graph, node)
        if channel_axis_of(layout) != (-1 if linear is not None else -len(layout) + 1):
            raise _no_rotation(node, "writes it beside other channels")
        if linear is None and not _constant_conv(self.graph, node):
            raise _no_rotation(node, "writes it with weights of its own")
        self.stream.writers.append(node.name)

    def _read(self, norm: NodeProto, layout: Layout) -> None:
        constant = all(name in self.graph.constants for name in norm.input[1:])
        if channel_axis_of(layout) != -1 or attribute(norm, "axis", -1) not in (-1, len(layout) - 1):
            raise NoRotationError(f"LayerNorm {norm.name!r} reads it with its channels elsewhere than last")
        if not constant or norm.output[0] in self.graph.outputs:
            raise NoRotationError(
                f"LayerNorm {norm.name!r} gives the model's output, and no linear layer after it takes "
                "gamma, beta and the rotation"
            )
        self.stream.readers[norm.name] = self._readers(norm, layout)

    def _readers(self, norm: NodeProto, layout: Layout) -> list[str]:
        """Linear layers and convolutions that read a LayerNorm, past what moves its output."""
        found: list[str] = []
        waiting = [(norm.output[0], layout)]
        while waiting:
            tensor, layout = waiting.pop()
            for node in self.graph.consumers(tensor):
                if node.op_type == "Shape":
                    continue
                if node.op_type in PASSING:
                    waiting += self._beyond(norm, node, layout)
                elif not self._takes(node, tensor, layout):
                    raise _no_rotation(
                        node,
                        f"reads LayerNorm {norm.name!r} and cannot take in gamma, beta and the rotation",
                    )
                elif node.name not in found:
                    found.append(node.name)
                    padded = node.op_type == "Conv" and any(attribute(node, "pads", []))
                    self.stream.padded |= {norm.name} if padded else set()
        return found

    def _beyond(self, norm: NodeProto, node: NodeProto, layout: Layout) -> list[tuple[str, Layout]]:
        """Outputs of an operator behind a LayerNorm, which moves that one's values and no others."""
        found = []
        for name in node.output:
            there = self._moved(node, layout, name, back=False) if len(data_inputs(node)) == 1 else None
            if there is None or name in self.graph.outputs:
                what = "gives the model's output" if there else "joins its channels with others"
                raise _no_rotation(node, f"behind LayerNorm {norm.name!r} {what}")
            found.append((name, there))
        if node.op_type == "Pad":
            widths = self.graph.constants.get(node.input[1])
            self.stream.padded |= {norm.name} if widths is None or widths.any() else set()
        return found

    def _takes(self, node: NodeProto, tensor: str, layout: Layout) -> bool:
        if node.input[0] != tensor:
            return False
        if as_linear(self.graph, node) is not None:
            return channel_axis_of(layout) == -1
        conv = _constant_conv(self.graph, node) and attribute(node, "group", 1) == 1
        return conv and channel_axis_of(layout) == 1 - len(layout)


def _no_rotation(node: NodeProto, what: str) -> NoRotationError:
    return NoRotationError(f"operator {node.name!r} ({node.op_type}) {what}")


def _constant_conv(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "Conv" and all(name in graph.constants for name in node.input[1:] if name)
