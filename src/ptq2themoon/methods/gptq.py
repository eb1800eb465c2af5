"""GPTQ: each row of a weight is rounded, and the rows not yet rounded make up for its error.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv 2210.17323, section 3, after optimal brain quantization (arXiv 2208.11580).
With X the inputs [rows, in] of a layer and W its weight [in, out], the error || X W - X W^ ||^2 has for each
output the Hessian H = 2 X^T X. When input channel q is rounded, the least error is left by

    W <- W - H^-1[:, q] (W[q] - Q(W[q])) / H^-1[q, q]                                equation 2

for the channels F not yet rounded, H being theirs; then q leaves H^-1 by one step of Gaussian elimination,
equation 3. All outputs go through the channels in one order, so they share H^-1, and its rows when their
turn comes are those of the upper Cholesky factor of H^-1 (step 3 of the paper): they are computed at once.
Updates of channels beyond a block are put off to the end of the block (step 2): the values are the same.

Layers come in graph order. X is what the layer reads in the quantized model, with the weights before it as
they were chosen here. Q is the quantizer that calibration gave the weight; nothing but the weight changes.

Where this differs from the paper or its released code:
- X is quantized where the recipe quantizes it; the paper leaves activations in floating point.
- Damping is a share of the mean of H's diagonal, as in the code (1 %). A channel that is always 0 is only
  rounded; the code sets its weight to 0.
- Scales are those of the whole weight, from the recipe's observer. The code's groups of input channels have
  scales of their own, on the reduction axis, where no integer product can take them out.
- Convolutions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import ROUNDING, Method, Stage, refuse_floating_weights
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

    # Rows [n, out] of a weight and their input channels [n] to the rows quantized.
    Rounding = Callable[[Tensor, Tensor], Tensor]


class GPTQSettings(Strict):
    """How the Hessian is used."""

    damping: Annotated[float, Field(gt=0)] = 0.01
    """What is added to the Hessian's diagonal, as a share of its mean; a huge one leaves plain rounding."""
    act_order: bool = False
    """Round channels with the largest inputs first, while many are left to make up for them."""
    block_size: Annotated[int, Field(ge=1)] = 128
    """Channels between two updates of all the others; only the time depends on it."""


class GPTQ(Method):
    """Of every linear layer whose weight is quantized."""

    Settings = GPTQSettings
    settings: GPTQSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """How weights are rounded."""
        return {ROUNDING: ""}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Refuse a recipe that quantizes no weight of a linear layer."""
        refuse_floating_weights("gptq", model, tools)

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Walk through the graph with all images at once, each weight rounded before the next is."""
        weights = {slot.operator for slot, tensor in model.slots() if tensor.operand == "weight"}
        with tools.without_gradients():
            for stop in tools.walk(model, weights):
                moments = stop.moments()
                hessian = 2 * moments.gram / moments.count
                try:
                    stop.put(compensated(stop.matrix(), hessian, stop.rounded, self.settings))
                except ValueError as error:
                    raise UserError(f"gptq: operator {stop.layer.name!r}: {error}") from None


def compensated(weight: Tensor, hessian: Tensor, rounded: Rounding, settings: GPTQSettings) -> Tensor:
    """A weight on its quantizer's grid, float64 [in, out].

    Args:
        weight: float64 [in, out].
        hessian: float64 [in, in].

    Raises:
        ValueError: a Hessian that is not positive definite.
    """
    import torch

    order = torch.arange(len(weight), device=weight.device)
    if settings.act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order], settings.damping)
    left, found = weight[order], torch.empty_like(weight)
    for start in range(0, len(weight), settings.block_size):
        end = min(start + settings.block_size, len(weight))
        errors = left.new_empty(end - start, left.shape[1])
        for q in range(start, end):
            row = rounded(left[q : q + 1], order[q : q + 1])
            found[order[q]] = row[0]
            errors[q - start] = (left[q] - row[0]) / factor[q, q]
            left[q + 1 : end] -= torch.outer(factor[q, q + 1 : end], errors[q - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return found


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, H^-1 = U^T U; float64 [in, in].

    Row q of U is the row of channel q of the inverse that is left when the channels before it were
    eliminated, over the square root of its diagonal.
    """
    import torch

    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    damped = hessian + damping * (mean if mean > 0 else 1.0) * eye
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise ValueError("its Hessian is not positive definite; give more images, or a larger damping")
    return upper


METHOD = GPTQ
