"""What a quantized model does with the output of an operator: who reads it, and by which quantizers."""

from __future__ import annotations

from ptq2themoon.graph.editing.onnx_graph import attribute, tensor_shapes
from ptq2themoon.graph.editing.operator_types import KEEPING_LAST_AXIS
from ptq2themoon.graph.forms.layernorms import readers_of
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.quantize.tensors import Slot

PAST = KEEPING_LAST_AXIS | {"Gather"}  # the classifier reads one token


class Readers:
    """Of a calibrated model, as it is now."""

    def __init__(self, model: QuantizedModel) -> None:
        self._graph = model.graph()
        self._shapes = tensor_shapes(model.edited)
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._quantizers = {slot: tensor.ready() for slot, tensor in model.slots()}

    def has_integers(self, operator: str) -> bool:
        """Whether it works along the last axis, and its first input is codes of kind `uniform`.

        A LayerNorm may have a scale for each channel, these powers of two apart; a softmax one for each head.
        """
        node, found = self._nodes[operator], self._quantizers.get(Slot(operator, "input", 0))
        rank = len(self._shapes[node.input[0]])
        if not isinstance(found, Uniform) or attribute(node, "axis", -1) % rank != rank - 1:
            return False
        if node.op_type == "Softmax":
            return found.axis != rank - 1
        exponents = (found.scale / found.scale.min()).log2()
        one = bool((found.zero_point == found.zero_point.flatten()[0]).all())
        return one and bool((exponents == exponents.round()).all())

    def of_output(self, operator: str) -> set[Quantizer | None]:
        """The quantizers that its output meets next: its own, or those of all readers past data movement."""
        own = self._quantizers.get(Slot(operator, "output", 0))
        if own is not None:
            return {own}
        readers = readers_of(self._graph, self._shapes, self._nodes[operator], PAST) or []
        return {self._quantizers.get(Slot(reader.name, "input", 0)) for reader in readers}

    def scale_of_output(self, operator: str) -> float | None:
        """The one scale in which all readers take it; None where they have several, or one has none."""
        found = self.of_output(operator)
        scales = {float(q.scale) for q in found if isinstance(q, Uniform) and q.axis is None}
        alike = all(isinstance(q, Uniform) and q.axis is None for q in found)
        return scales.pop() if len(scales) == 1 and alike else None

    def kind_of_output(self, operator: str) -> str | None:
        """The one kind by which all readers take it."""
        kinds = {None if q is None else q.kind for q in self.of_output(operator)}
        return kinds.pop() if len(kinds) == 1 else None
