"""What linear layers lose where they read something else than what they should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.graph.forms.linear import Linear
from ptq2themoon.quantize.shift import planned_weight
from ptq2themoon.quantize.tensors import QuantizedOperator


def output_error(
    layers: Sequence[Linear], plan: Iterable[QuantizedOperator], x: Tensor
) -> Callable[[Tensor], float]:
    """The squared error of the outputs of layers that all read `x`, [rows, in], by what they read instead.

    Weights are quantized as the plan says. Where there are more outputs than inputs, the error is taken from
    products of weights with themselves: smaller matrices, the same number.
    """
    plan = list(plan)
    exact = torch.from_numpy(np.hstack([layer.weight for layer in layers])).double()
    rounded = torch.from_numpy(np.hstack([planned_weight(layer, plan) for layer in layers]))
    if rounded.shape[1] <= rounded.shape[0]:
        wanted, weight = x @ exact.float(), rounded.float()
        return lambda read: float((read @ weight - wanted).double().square().sum())
    square = (rounded @ rounded.T).float()
    left = x.double() @ (rounded - exact)
    slope, constant = 2 * (left @ rounded.T).float(), float(left.square().sum())

    def error(read: Tensor) -> float:
        off = read - x
        return float((off * (off @ square + slope)).double().sum()) + constant

    return error
