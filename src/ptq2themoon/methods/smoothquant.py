"""SmoothQuant: scales of channels migrate from activations, which have outliers, into weights, with few.

Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for
Large Language Models", ICML 2023, arXiv 2211.10438, section 4. The input X of a linear layer is divided by
one factor for each channel, and the weight's rows are multiplied by it, so the product stays:

    Y = (X diag(s)^-1) (diag(s) W)                                                   equation 3
    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha)                                    equation 4

The division goes into what makes X. Where layers share their input, as queries, keys and values may, W_j is
the row of all of them. Scales are calibrated afterwards, on what the migration made.

Stretching a LayerNorm's channels by any factors, with its readers' weights shrunk by the same, is undone: it
multiplies s by these factors, whatever alpha is.

Where this differs from the paper or its released code:
- Which layers: those that a LayerNorm stands before, the classifier among them (one token, or the mean of
  all, keeps a channel's factor), and the projection after attention, whose factors go into the layer that
  makes the values (`values`): a softmax mixes tokens, each channel by itself. The paper takes LayerNorms
  alone. fc2 stays as it is: no factor passes GELU.
- Maxima are over all calibration images. A channel without activations or without weights has factor 1; the
  code clips maxima at 1e-5.
- Weights and activations are quantized as the recipe says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.graph.forms.layernorms import KEEPING_FACTORS
from ptq2themoon.methods.base import Method
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    import numpy as np

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class SmoothQuantSettings(Strict):
    """How far scales migrate, and where."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """1: activations all get one range, and weights take what they had; 0: the other way round."""
    layernorms: bool = True
    """From the inputs of layers after a LayerNorm, into its gamma and beta."""
    values: bool = True
    """From the input of the projection after attention, into the layer that makes the values."""


class SmoothQuant(Method):
    """Needs a recipe that quantizes inputs of linear layers per tensor."""

    Settings = SmoothQuantSettings
    settings: SmoothQuantSettings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Rewrite LayerNorms, value layers and what reads them; values first, for qkv has both."""
        if not (self.settings.layernorms or self.settings.values):
            return
        groups = tools.norm_groups(model, past=KEEPING_FACTORS) if self.settings.layernorms else []
        paths = tools.value_paths(model) if self.settings.values else []
        if not groups and not paths:
            raise UserError(
                "smoothquant: no quantized linear layer has a LayerNorm or an attention before it that can "
                "take factors; quantize the inputs of qkv, fc1 or proj per tensor, or leave the method out"
            )
        _refuse_fixed(model, {slot for group in groups for slot in group.per_channel})
        read = {group.readers[0] for group in groups} | {path.reader for path in paths}
        maxima = tools.input_maxima(model, read)
        for path in paths:
            path.rescale(model, self._factors(maxima[path.reader].numpy(), path.weight(model)))
        for group in groups:
            group.rescale(model, self._factors(maxima[group.readers[0]].numpy(), group.weights(model)))

    def _factors(self, activations: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Equation 4 for maxima [in] of the input and a weight [in, out]; float64 [in]."""
        import numpy as np

        rows = np.abs(weight.astype(np.float64)).max(1)
        there = (activations > 0) & (rows > 0)
        x, w = np.where(there, activations, 1.0), np.where(there, rows, 1.0)
        return np.where(there, x**self.settings.alpha / w ** (1 - self.settings.alpha), 1.0)


def _refuse_fixed(model: QuantizedModel, slots: set) -> None:
    fixed = sorted(slot.operator for slot in slots.intersection(model.fixed))
    if fixed:
        raise UserError(
            f"smoothquant: a method before it has chosen the quantizer of the input of {fixed[0]!r}, which "
            "migration would change; name smoothquant first"
        )


METHOD = SmoothQuant
