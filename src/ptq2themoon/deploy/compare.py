"""Each operator of a faithful INT8 model against the simulation, on equal inputs.

What an operator's simulated inputs give in the runtime, as a model of that operator alone, is compared
with its simulated output, in codes: whole numbers of the output's scale. Both round the same value, up
to the order of floating-point sums; so they may differ by one, where that value lies midway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper
from torch import Tensor

from ptq2themoon.deploy.export import deploy
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.runtime import session
from ptq2themoon.graph.editing import Graph
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator

TIE = 0.01  # of a step: how far from midway float sums in another order may put a value


@dataclass
class Difference:
    """Of the codes of one operator's output.

    Attributes:
        codes: how many were compared.
        differ: how many differ.
        largest: largest difference, in steps.
        farthest_from_tie: among those that differ, largest distance from midway between two codes of the
            value before rounding, in steps: next to zero for rounding ties.
    """

    operator: str
    codes: int = 0
    differ: int = 0
    largest: int = 0
    farthest_from_tie: float = 0.0

    @property
    def within_ties(self) -> bool:
        return self.largest <= 1 and self.farthest_from_tie <= TIE

    def add(self, ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> None:
        """Codes of both sides, and the value before rounding, in steps."""
        off = np.abs(ours - theirs)
        at = off > 0
        self.codes += off.size
        self.differ += int(at.sum())
        if at.any():
            self.largest = max(self.largest, int(off.max()))
            distance = np.abs(np.abs(exact[at] - np.floor(exact[at])) - 0.5)
            self.farthest_from_tie = max(self.farthest_from_tie, float(distance.max()))


Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclass
class OperatorPair:
    """One operator as a model of its own: as deployed, and with its output before quantization."""

    grid: Grid
    inputs: list[str]
    deployed: Run
    unrounded: Run


def compare(
    model: onnx.ModelProto, quantized: Sequence[QuantizedOperator], simulated: SimulatedModel, images: Tensor
) -> list[Difference]:
    """A `Difference` for each operator whose output is quantized, in graph order.

    Args:
        model: fused; `simulated` is the same with `quantized`.
        images: [B, C, H, W], normalised.
    """
    graph = Graph(model)
    nodes = {node.name: node for node in graph.nodes}
    found: dict[str, Difference] = {}
    pairs: dict[str, OperatorPair] = {}
    items = {i.operator.name: i for i in quantized if any(t.operand == "output" for t in i.tensors)}

    def watch(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if name not in pairs:  # the engine may split the batch
            pairs[name] = operator_pair(graph, nodes[name], items[name], inputs, outputs[0].ndim)
        pair = pairs[name]
        values = {n: v.detach().cpu().numpy() for n, v in zip(nodes[name].input, inputs, strict=False) if n}
        feeds = {n: values[n] for n in pair.inputs}
        step = pair.grid.spread(outputs[0].ndim)
        theirs = np.rint(outputs[0].detach().cpu().numpy() / step)
        difference = found.setdefault(name, Difference(name))
        difference.add(np.rint(pair.deployed(feeds) / step), theirs, pair.unrounded(feeds) / step)

    simulated(images, dict.fromkeys(items, watch))
    return [found[name] for name in items]


def operator_pair(
    graph: Graph, node: onnx.NodeProto, item: QuantizedOperator, inputs: Sequence[Tensor], output_rank: int
) -> OperatorPair:
    """The models of one operator; `inputs` tell the ranks of its own."""
    (output,) = (t for t in item.tensors if t.operand == "output" and t.position == 0)
    alone = _alone(graph, node, inputs, output_rank)
    without = QuantizedOperator(item.operator, [t for t in item.tensors if t.operand != "output"])
    names = [i.name for i in alone.graph.input]
    runs = []
    for part, optimise in ((item, True), (without, False)):
        made = deploy(alone, [part] if part.tensors else [], "faithful").model
        runs.append(_runner(made, optimise))
    return OperatorPair(Grid.of(output), names, *runs)


def _runner(model: onnx.ModelProto, optimise: bool) -> Run:
    running = session(model, optimise=optimise)
    return lambda feeds: running.run(None, dict(feeds))[0]


def _alone(graph: Graph, node: onnx.NodeProto, inputs: Sequence[Tensor], output_rank: int) -> onnx.ModelProto:
    names = list(dict.fromkeys(n for n in node.input if n and n not in graph.constants))
    ranks = {n: t.ndim for n, t in zip(node.input, inputs, strict=False) if n}

    def value(name: str, rank: int) -> onnx.ValueInfoProto:
        dims = [f"{name}.{axis}" for axis in range(rank)]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)

    made = onnx.ModelProto()
    made.CopyFrom(graph.model)
    made.ClearField("graph")
    made.graph.name = "operator"
    made.graph.node.append(node)
    made.graph.input.extend(value(name, ranks[name]) for name in names)
    made.graph.output.append(value(node.output[0], output_rank))
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(graph.constants[n], n) for n in set(node.input) if n in graph.constants
    )
    return made
