"""Each operator of an INT8 model against the simulation, on equal inputs.

What an operator's simulated inputs give in the runtime, as a model of that operator alone, is compared
with its simulated output, in steps: units of the output's scale, or where the output is not quantized of as
many bits over its range as the operator's inputs have. A faithful operator rounds the same
value as the simulation, up to the order of floating-point sums: its codes may differ by one, where that
value lies midway. A fast one does not round its output, nor its biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.deploy.kinds import Form, Unwritten, form_of
from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.editing.onnx_run import session
from ptq2themoon.quantize.quantizers.base import SMALLEST_SCALE
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.modes import Mode
from ptq2themoon.vocabulary.tensor_spec import code_range

TIE = 0.01  # steps: how far from midway sums in another order may put a value
FAR = 1.0  # steps, rms: rounding alone makes 1 / sqrt(12) = 0.29


@dataclass
class Difference:
    """Of one operator's output, runtime against simulation.

    Attributes:
        values: how many were compared.
        differ: how many have another code, once rounded.
        largest: largest difference of codes.
        from_tie: among those that differ, largest distance from midway between two codes of the value
            before rounding, in steps; next to zero for rounding ties.
        squares: sum of squared differences before the runtime's rounding, if it does round, in steps.
    """

    operator: str
    mode: Mode
    values: int = 0
    differ: int = 0
    largest: int = 0
    from_tie: float = 0.0
    squares: float = 0.0

    @property
    def rms(self) -> float:
        """Distance from the simulation's codes, in steps."""
        return math.sqrt(self.squares / self.values) if self.values else 0.0

    @property
    def departs(self) -> bool:
        """Faithful: by more than a rounding tie. Fast: by more than a step."""
        if self.mode == "fast":
            return self.rms > FAR
        return self.largest > 1 or self.from_tie > TIE

    def add(self, ours: np.ndarray, theirs: np.ndarray, unrounded: np.ndarray) -> None:
        """In steps, clipped to the grid: the runtime's values, the simulation's codes, what it rounds."""
        off = np.abs(np.rint(ours) - theirs)
        at = off > 0
        self.values += off.size
        self.differ += int(at.sum())
        self.squares += float(np.square(ours - theirs, dtype=np.float64).sum())
        if at.any():
            self.largest = max(self.largest, int(off.max()))
            distance = np.abs(unrounded[at] - np.floor(unrounded[at]) - 0.5)
            self.from_tie = max(self.from_tie, float(distance.max()))


@dataclass
class _Alone:
    """One operator as models of its own: as deployed, and with its output not rounded."""

    form: Form
    inputs: list[str]
    deployed: onnxruntime.InferenceSession
    unrounded: onnxruntime.InferenceSession

    def steps(self, running: onnxruntime.InferenceSession, values: Mapping[str, np.ndarray]) -> np.ndarray:
        output = running.run(None, {name: values[name] for name in self.inputs})[0]
        return self.form.steps(output)


def compare(
    model: onnx.ModelProto,
    quantized: Sequence[QuantizedOperator],
    simulated: SimulatedModel,
    images: Tensor,
    mode: Mode = "faithful",
) -> list[Difference]:
    """A `Difference` for each quantized operator, in graph order.

    Args:
        model: fused; `simulated` is the same with `quantized`.
        images: [B, C, H, W], normalised.
    """
    graph = Graph(model)
    nodes = {node.name: node for node in graph.nodes}
    items = {item.operator.name: item for item in quantized}
    found = {name: Difference(name, mode) for name in items}

    def compare_alone(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        # Parameters are known, and ONNX may have more of them than the simulation.
        pairs = zip(nodes[name].input, inputs, strict=False)
        values = {n: t.detach().cpu().numpy() for n, t in pairs if n and n not in graph.constants}
        output = outputs[0].detach().cpu().numpy()
        alone = _alone(graph, nodes[name], items[name], mode, values, output)
        theirs = np.rint(alone.form.steps(output))
        steps = (alone.steps(running, values) for running in (alone.deployed, alone.unrounded))
        ours, unrounded = steps
        found[name].add(ours, theirs, unrounded)

    simulated(images, dict.fromkeys(items, compare_alone))
    return list(found.values())


def _form_of_output(item: QuantizedOperator, value: np.ndarray) -> Form:
    """In whose steps differences of the first output are counted."""
    for tensor in item.tensors:
        if (tensor.operand, tensor.position) == ("output", 0):
            form = form_of(tensor)
            if not isinstance(form, Unwritten):
                return form
    low, high = code_range(item.tensors[0].ready().bits, "signed")
    largest = max(float(np.abs(value).max()), SMALLEST_SCALE)
    return Grid(np.array(largest / high, np.float32), None, low, high)


def _alone(
    graph: Graph,
    node: NodeProto,
    item: QuantizedOperator,
    mode: Mode,
    values: Mapping[str, np.ndarray],
    output: np.ndarray,
) -> _Alone:
    model = _model_of(graph, node, values, output)
    without = replace(item, tensors=[t for t in item.tensors if t.operand != "output"])
    deployed = session(deploy(model, [item], mode).model, quantized=True)
    unrounded = deploy(model, [without] if without.tensors else [], "faithful").model
    plain = session(unrounded, quantized=True, optimise=False)
    return _Alone(_form_of_output(item, output), list(values), deployed, plain)


def _model_of(
    graph: Graph, node: NodeProto, values: Mapping[str, np.ndarray], output: np.ndarray
) -> onnx.ModelProto:
    """A fused model of one operator with its parameters."""

    def described(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        dims: list[str | int | None] = [f"{name}.images", *shape[1:]]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)

    whole = graph.model
    model = onnx.ModelProto(ir_version=whole.ir_version)
    model.opset_import.extend(whole.opset_import)
    model.functions.extend(whole.functions)
    model.graph.name = "operator"
    model.graph.node.append(node)
    model.graph.input.extend(described(name, value.shape) for name, value in values.items())
    model.graph.output.append(described(node.output[0], output.shape))
    constants = {name: graph.constants[name] for name in node.input if name in graph.constants}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    return model
