"""Plain operators in the place of a fused one, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute


class UnknownForm(Exception):
    """Why an operator cannot be written out."""


class PlainWriter:
    """The plain operators of one fused operator, in order; their tensors have names of their own."""

    def __init__(self, graph: Graph, node: NodeProto, shapes: Shapes) -> None:
        self.graph, self.node, self.shapes = graph, node, shapes
        self.nodes: list[NodeProto] = []
        self.stem = node.name or node.output[0]

    def make(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operator's output."""
        return self._add(kind, inputs, 1, attributes)[0]

    def split(self, tensor: str, sizes: list[int]) -> list[str]:
        """Parts along the last axis."""
        value = self.graph.constants.get(tensor)
        if value is not None:
            parts = np.split(value, np.cumsum(sizes)[:-1], axis=-1)
            return [
                self.graph.add_constant(f"{self.stem}/part", np.ascontiguousarray(part)) for part in parts
            ]
        return self._add("Split", (tensor, self.number(sizes)), len(sizes), {"axis": -1})

    def _add(self, kind: str, inputs: tuple[str, ...], outputs: int, attributes: dict[str, Any]) -> list[str]:
        names = [self.graph.free_tensor(f"{self.stem}/{kind}_{len(self.nodes)}_{i}") for i in range(outputs)]
        name = f"{self.stem}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return names

    def number(self, value: object, kind: type = np.int64) -> str:
        """A constant."""
        return self.graph.add_constant(f"{self.stem}/constant", np.array(value, dtype=kind))

    def real(self, value: float) -> str:
        """A constant of float32."""
        return self.number(value, np.float32)

    def give(self, tensor: str, output: int = 0) -> None:
        """Let a tensor of its operators be an output of the fused operator."""
        name = self.node.output[output]
        for node in self.nodes:
            node.input[:] = [name if old == tensor else old for old in node.input]
            node.output[:] = [name if old == tensor else old for old in node.output]

    def optional(self, position: int) -> str:
        """The name of an input; empty where it is left out."""
        return self.node.input[position] if len(self.node.input) > position else ""

    def wanted(self, position: int) -> bool:
        """Whether something reads an output."""
        name = self.node.output[position] if len(self.node.output) > position else ""
        return bool(name) and (name in self.graph.outputs or bool(self.graph.consumers(name)))

    def refuse(self, inputs: dict[int, str], attributes: tuple[str, ...] = ()) -> None:
        """Refuse what is not written out: inputs that are there, attributes that are not 0."""
        found = [what for position, what in inputs.items() if self.optional(position)]
        found += [f"attribute {name!r}" for name in attributes if attribute(self.node, name, 0)]
        if found:
            raise UnknownForm(f"{found[0]} is not known here")
