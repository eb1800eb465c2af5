"""Scores that keep the order of attention: one for each product of queries and keys."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import tensor_shapes
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.program import Program
from ptq2themoon.quantize.scores import Ranked
from ptq2themoon.quantize.simulation import SimulatedModel


def ranked_scores(
    model: QuantizedModel, floating: SimulatedModel, gamma: float, theta: float, pairs: int, seed: int
) -> dict[str, Ranked]:
    """By the name of the product of queries and keys; of attentions whose softmax reads nothing else made.

    Args:
        floating: the rewritten graph in floating point.
        pairs: how many other keys each key is compared with, at distances that are drawn from `seed`.
    """
    places = {(operator.role, operator.block): operator.name for operator in model.operators}
    shapes = tensor_shapes(model.rewritten)
    generator = np.random.default_rng(seed)
    found = {}
    for (role, block), name in places.items():
        if role == "attn_scores" and ("softmax", block) in places:
            attention = _Attention(floating, name, places["softmax", block])
            if not attention.is_alone:
                continue
            keys = shapes[attention.output][-1]
            distances = np.arange(1, keys if isinstance(keys, int) else pairs + 1)
            drawn = generator.choice(distances, min(pairs, len(distances)), replace=False)
            found[name] = Ranked(attention, gamma, theta, sorted(drawn.tolist()))
    return found


class _Attention:
    """What lies between a product of queries and keys and its softmax's output.

    Attributes:
        output: the name of the softmax's output.
    """

    def __init__(self, floating: SimulatedModel, product: str, softmax: str) -> None:
        order = floating.order
        start, end = ([operation.name for operation in order].index(name) for name in (product, softmax))
        self._scores = str(order[start].outputs[0].name)
        self.output = str(order[end].outputs[0].name)
        reached, between = {self._scores}, []
        for operation in order[start + 1 : end + 1]:
            if any(variable.name in reached for variable in operation.inputs):
                between.append(operation)
                reached |= {variable.name for variable in operation.outputs}
        self._program = Program(between, [self.output], floating.device, {})

    @property
    def is_alone(self) -> bool:
        """Whether scores and constants are all that it reads."""
        return self._program.read == [self._scores]

    def __call__(self, scores: Tensor) -> Tensor:
        """Attention of scores."""
        return self._program.run({self._scores: scores})[0]
