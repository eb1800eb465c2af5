"""A quantized model: an untouched reference, the graph that methods edited, and a quantizer for each slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.meaning.nodes import Node, read_nodes
from ptq2themoon.graph.meaning.roles import find_roles
from ptq2themoon.quantize.edits import Edits, with_parameter
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor, Slot
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator


@dataclass
class QuantizedModel:
    """What quantization made of a fused model.

    Attributes:
        reference: the fused model; nothing changes it, and floating point means it.
        operators: of the edited graph, with roles.
        rewrite: edits that leave the output in floating point equal, such as a re-parameterisation.
        changes: edits that do not, such as corrected biases; applied after `rewrite`.
        quantized: the operators of the edited graph that are quantized.
        fixed: quantizers that a method chose before calibration, which leaves them as they are.
    """

    reference: onnx.ModelProto
    operators: list[Operator]
    rewrite: Edits = field(default_factory=Edits)
    changes: Edits = field(default_factory=Edits)
    quantized: list[QuantizedOperator] = field(default_factory=list)
    fixed: dict[Slot, Quantizer] = field(default_factory=dict)
    _graphs: dict[str, onnx.ModelProto] = field(default_factory=dict, repr=False)

    @property
    def rewritten(self) -> onnx.ModelProto:
        """The reference in the form that is quantized; its output in floating point is the reference's."""
        if "rewritten" not in self._graphs:
            self._graphs["rewritten"] = self.rewrite.apply(self.reference)
        return self._graphs["rewritten"]

    @property
    def edited(self) -> onnx.ModelProto:
        """The graph that is quantized."""
        if "edited" not in self._graphs:
            self._graphs["edited"] = self.changes.apply(self.rewritten)
        return self._graphs["edited"]

    def graph(self) -> Graph:
        """The edited graph, to ask; editing it changes nothing here."""
        return Graph(self.edited)

    def nodes(self) -> dict[str, Node]:
        """Facts of the edited graph's operators, by name."""
        return read_nodes(self.edited)

    def set_parameters(self, values: Mapping[tuple[str, int], np.ndarray], *, equal: bool) -> None:
        """Give parameters of the edited graph new values; a bias may be new.

        Args:
            values: by operator and position among its inputs.
            equal: whether the output in floating point stays what it is; then it is part of `rewrite`.

        Raises:
            UserError: a rewrite of what was changed before, of which floating point knows nothing.
        """
        graph, edits = self.graph(), self.rewrite if equal else self.changes
        nodes = {node.name: node for node in graph.nodes}
        for (operator, position), value in values.items():
            new, name = with_parameter(graph, nodes[operator], position)
            if equal and name in self.changes.constants:
                raise UserError(
                    f"operator {operator!r}: a method before has changed what it computes, so its parameters "
                    "cannot be rewritten any more; name that method last"
                )
            edits.constants[name] = graph.constants[name] = np.asarray(value, np.float32)
            if new is not nodes[operator]:
                edits.put(operator, [new])
                nodes[operator] = new
        self._graphs.clear()
        if equal:
            self.operators = find_roles(self.edited)

    def replace_operators(
        self, nodes: Mapping[str, list[NodeProto]], constants: Mapping[str, np.ndarray], *, equal: bool
    ) -> None:
        """Put other operators in the place of some, and find all roles again.

        Args:
            nodes: what takes an operator's place, by its name; nothing removes it.
            constants: that the new operators read.
            equal: whether the output in floating point stays what it is; then it is part of `rewrite`.
        """
        edits = self.rewrite if equal else self.changes
        edits.constants |= constants
        for operator, new in nodes.items():
            edits.put(operator, new)
        self._graphs.clear()
        self.operators = find_roles(self.edited)

    def slots(self) -> Iterator[tuple[Slot, QuantizedTensor]]:
        """Every slot of every quantized operator, in graph order."""
        for item in self.quantized:
            for tensor in item.tensors:
                yield item.slot(tensor), tensor
