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
  alone.
- No factor passes GELU, so fc2 stays as it is. With `multiplied`, so many layers get a multiplication before
  them: those of which the input, alone quantized, moves the output of the model most, on 16 images.
- Maxima are over all calibration images. A channel without activations or without weights has factor 1; the
  code clips maxima at 1e-5.
- Weights and activations are quantized as the recipe says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from ptq2themoon.graph.forms.layernorms import KEEPING_FACTORS
from ptq2themoon.methods.base import Method, refuse_fixed, refuse_trained, refuse_widened
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from ptq2themoon.quantize.migration import Multiplied, NormGroup, ValuePath
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
    multiplied: Annotated[int, Field(ge=0)] = 0
    """How many layers after neither, such as fc2, get a multiplication: those whose inputs lose most."""


class SmoothQuant(Method):
    """Needs a recipe that quantizes inputs of linear layers per tensor."""

    Settings = SmoothQuantSettings
    settings: SmoothQuantSettings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Rewrite LayerNorms, value layers and what reads them; values first, for qkv has both."""
        on = self.settings
        if not (on.layernorms or on.values or on.multiplied):
            return
        refuse_trained("smoothquant", tools)
        groups = tools.norm_groups(model, past=KEEPING_FACTORS) if on.layernorms else []
        paths = tools.value_paths(model) if on.values else []
        carried = {name for group in groups for name in group.readers} | {path.reader for path in paths}
        others = self._chosen(model, tools, carried)
        if not groups and not paths and not others:
            refuse_widened("smoothquant", tools)
            raise UserError(
                "smoothquant: no quantized linear layer has a LayerNorm or an attention before it that can "
                "take factors; quantize the inputs of qkv, fc1 or proj per tensor, or leave the method out"
            )
        read = carried | {other.reader for other in others}
        refuse_fixed("smoothquant", tools, read, "which migration would change")
        places: dict[str, NormGroup | ValuePath | Multiplied] = {}
        places |= {path.reader: path for path in paths} | {other.reader: other for other in others}
        places |= {group.readers[0]: group for group in groups}
        largest = tools.input_maxima(model, places)
        for name, place in places.items():
            place.rescale(model, factors(largest[name], place.weight(model), on.alpha))

    def _chosen(self, model: QuantizedModel, tools: Tools, carried: set[str]) -> list[Multiplied]:
        """The layers to multiply before; nothing else takes their factors."""
        if not self.settings.multiplied:
            return []
        found = {place.reader: place for place in tools.multiplied(model) if place.reader not in carried}
        moved = tools.input_sensitivities(model, {place.slot: place.input for place in found.values()})
        ranked = sorted(found, key=lambda name: -moved[name])
        return [found[name] for name in found if name in ranked[: self.settings.multiplied]]


def factors(largest: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """Equation 4, float64 [in], for the largest magnitudes [in] of an input and a weight [in, out]."""
    rows = np.abs(weight.astype(np.float64)).max(1)
    there = (largest > 0) & (rows > 0)
    x, w = np.where(there, largest, 1.0), np.where(there, rows, 1.0)
    return np.where(there, x**alpha / w ** (1 - alpha), 1.0)


METHOD = SmoothQuant
