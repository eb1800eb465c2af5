"""ERQ: weights make up for the error of quantized inputs, and for their own rounding, in closed form.

Zhong, Hu, Lin, Chen and Ji, "ERQ: Error Reduction for Post-Training Quantization of Vision Transformers",
ICML 2024; Zhong et al., "Towards Accurate Post-Training Quantization of Vision Transformers via Error
Reduction", TPAMI 2025, arXiv 2407.06794. Layers come in graph order; x is a row that a layer reads in
floating point, x^ what it reads in the quantized model, [in], n rows of all images and tokens.

1. Activations (Aqer): ridge regression of the layer's output in floating point on its quantized inputs,

       [dW; db] = (X^^T X^ + lambda I)^-1 X^^T (X W + b - X^ W - b),     W <- W + dW, b <- b + db.

   Then the weight's quantizer is found again, by the recipe's observer.
2. Weights (Wqer): of the input channels that are left, the first half, S, is rounded, to W_S + D. For each
   output, roundings of S are flipped to the other side, at most `flips` times: that with the largest gradient
   2 M D, M = E[x^ x^^T] on S (the paper's mu mu^T + Sigma), whose sign is that of D, while D^T M D falls.
   Then the rest, R, makes up for what is left, by ridge regression again:

       W_R <- W_R - (X^_R^T X^_R + lambda I)^-1 X^_R^T X^_S D

   and so on with R, until one channel is left, which is rounded.

The recipe calls repq_vit first, as the paper does.

Where this differs from the paper or its released code:
- lambda is `ridge` times the mean of X^^T X^'s diagonal. The code has 0.1 times 10^4 or 2 10^4, whatever
  number of rows there is and however large they are: some 0.16 to 0.32 of the diagonal for 32 images of 197
  tokens and inputs of variance 1.
- The bias is not shrunk by the ridge, so the mean error goes wholly.
- One scale for each output channel. The code gives qkv and fc1 two, one of them for columns with outliers:
  they lie on the axis of the sum, where no integer product can take them out.
- Inputs come from the quantized model with the weights before it as they were chosen here, and outputs from
  the model in floating point, so errors from before the layer are made up for too.
- The patch embedding is a convolution and stays as it is, as in the code. The classifier has the same ridge
  as the others; in the code its own lambda is overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np
from pydantic import Field

from ptq2themoon.graph.editing.operator_types import BIAS
from ptq2themoon.graph.forms.linear import Linear
from ptq2themoon.methods.base import (
    LAST_SCALES,
    ROUNDING,
    WEIGHT_SCALES,
    Method,
    Stage,
    refuse_floating_weights,
)
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.layers import Moments, Stop
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class Rounds(Protocol):
    """What rounds rows [n, out] of a weight, those of the input channels `index` [n]; float64."""

    def rounded(self, rows: Tensor, index: Tensor) -> Tensor:
        """The nearest values of the grid."""

    def other_side(self, rows: Tensor, nearest: Tensor, index: Tensor) -> Tensor:
        """The grid's next values on the other side of `rows`; `nearest` where there are none."""


class ERQSettings(Strict):
    """What of the method is in force."""

    ridge: Annotated[float, Field(gt=0)] = 0.1
    """lambda of both regressions, as a share of the mean of the inputs' second moments."""
    activations: bool = True
    """The first step, Aqer."""
    weights: bool = True
    """The second step, Wqer."""
    flips: Annotated[int, Field(ge=0)] = 100
    """How many roundings of an output may be flipped in each half; 0: none."""


class ERQ(Method):
    """Of every linear layer whose weight is quantized."""

    Settings = ERQSettings
    settings: ERQSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """How weights are rounded, and their scales, which it finds again for the regressed ones."""
        found = {ROUNDING: "weights: false"} if self.settings.weights else {}
        if self.settings.activations:
            found |= dict.fromkeys((WEIGHT_SCALES, LAST_SCALES), "activations: false")
        return found

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Give a bias of zeros to layers that have none, for the first step to change."""
        refuse_floating_weights("erq", model, tools)
        if self.settings.activations:
            layers = tools.weighted_layers(model)
            zeros = {(x.name, BIAS): np.zeros(x.weight.shape[1]) for x in layers if x.bias is None}
            model.set_parameters(zeros, equal=True)

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Walk through the graph with all images at once, each layer changed before the next is run."""
        if not (self.settings.activations or self.settings.weights):
            return
        weights = {slot.operator: tensor for slot, tensor in model.slots() if tensor.operand == "weight"}
        kinds = {tensor.ready().kind for tensor in weights.values()}
        if self.settings.weights and kinds - {"uniform"}:
            raise UserError(
                f"erq: rounds to steps of one size, but weights have kind {min(kinds - {'uniform'})}; "
                "say weights: false, or kind: uniform"
            )
        with tools.without_gradients():
            for stop in tools.walk(model, weights, exact=self.settings.activations):
                self._reduce(stop)

    def _reduce(self, stop: Stop) -> None:
        moments = stop.moments(exact=self.settings.activations)
        weight, bias = stop.matrix(), None
        if self.settings.activations:
            weight, bias = regressed(weight, stop.exact_layer(), moments, self.settings.ridge)
            stop.fit(weight)
        if self.settings.weights:
            weight = halved(weight, moments.gram / moments.count, stop, self.settings)
        stop.put(weight, bias)


def regressed(weight: Tensor, exact: Linear, moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [in, out] and bias [out] that give a layer's exact output from quantized inputs; float64.

    Args:
        weight: the ridge draws towards it.
        exact: the layer in floating point.
        moments: with `cross` and `difference`.
    """
    import torch

    assert moments.cross is not None
    assert moments.difference is not None
    first = torch.tensor(exact.weight).to(weight)
    bias = 0.0 if exact.bias is None else torch.tensor(exact.bias).to(weight)
    mean, difference = moments.total / moments.count, moments.difference / moments.count
    gram = moments.gram / moments.count - torch.outer(mean, mean)
    cross = moments.cross / moments.count - torch.outer(mean, difference)
    weight = weight + ridge_solution(gram, cross @ first + gram @ (first - weight), ridge)
    return weight, (mean + difference) @ first + bias - mean @ weight


def ridge_solution(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(gram + lambda I)^-1 right, lambda being `ridge` times the mean of gram's diagonal."""
    import torch

    mean = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * (mean if mean > 0 else 1.0) * eye, right)


def halved(weight: Tensor, second: Tensor, stop: Rounds, settings: ERQSettings) -> Tensor:
    """The weight rounded half by half, float64 [in, out] on its grid.

    Args:
        second: E[x^ x^^T], float64 [in, in].
        stop: rounds rows of the weight.
    """
    import torch

    left, found = torch.arange(len(weight), device=weight.device), weight.clone()
    while len(left):
        now, later = left.tensor_split([(len(left) + 1) // 2])
        exact = found[now]
        nearest = stop.rounded(exact, now)
        other = stop.other_side(exact, nearest, now)
        found[now] = flipped(exact, nearest, other, second[now][:, now], settings.flips)
        if len(later):
            error = second[later][:, now] @ (found[now] - exact)
            found[later] -= ridge_solution(second[later][:, later], error, settings.ridge)
        left = later
    return found


def flipped(exact: Tensor, nearest: Tensor, other: Tensor, second: Tensor, flips: int) -> Tensor:
    """Rounded rows [n, out], of which each output takes some from the other side, as long as that gains.

    Args:
        exact, nearest, other: rows before rounding, rounded, and rounded to the other side.
        second: E[x^ x^^T] of these rows' channels, float64 [n, n].
    """
    import torch

    error, move = nearest - exact, other - nearest
    gradient = 2 * second @ error
    columns = torch.arange(error.shape[1], device=error.device)
    for _ in range(flips):
        fitting = (gradient.sign() == error.sign()) & (move != 0)
        row = torch.where(fitting, gradient.abs(), -1.0).argmax(0)
        step = torch.where(fitting[row, columns], move[row, columns], 0.0)
        gain = gradient[row, columns] * step + second.diagonal()[row] * step.square()
        step = torch.where(gain < 0, step, 0.0)
        if not bool(step.any()):
            break
        gradient += 2 * second[:, row] * step
        error[row, columns] += step
        move[row, columns] = torch.where(step != 0, -step, move[row, columns])
    return exact + error


METHOD = ERQ
