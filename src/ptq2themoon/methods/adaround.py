"""AdaRound: whether each weight is rounded up or down is learned, by the layer's output.

Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020, arXiv 2004.10568, section 3.3. With W^ the soft-quantized weight (equation 22),
h a rectified sigmoid (equation 23) and x^ the layer's input with everything before it quantized:

    min_V || W x - W^ x^ ||^2 + lambda sum(1 - |2 h(V) - 1|^beta)                    equations 24 and 25

beta falls while it trains, so that h ends at 0 or 1; at first, the warm start, lambda is 0. In the end each
weight is rounded to the side that h chose: another code of the same grid, and nothing at run time.

Where this differs from the paper or its released code:
- The loss of the first term is the sum over output channels, mean over tokens and images.
- No activation function follows a layer here: equation 25's f is the identity.
- beta falls linearly, as in BRECQ's code; the paper says "annealed" without a form.
- `unit: block` minimises the error of a transformer block's output instead, which is BRECQ without its loss.
- The default preset `quick` trains far less than the paper's 10,000 iterations on 1,024 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ptq2themoon.methods.base import ROUNDING, Method, Stage, refuse_floating_weights
from ptq2themoon.vocabulary.training_settings import RoundingSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class AdaRoundSettings(RoundingSettings):
    """What is trained at once, and how."""

    unit: Literal["layer", "block"] = "layer"
    """What is trained by its own output: each linear layer, or each transformer block."""


class AdaRound(Method):
    """Of every linear layer whose weight is quantized, and of convolutions that stand in a unit with them."""

    Settings = AdaRoundSettings
    settings: AdaRoundSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """How weights are rounded."""
        return {ROUNDING: "iterations: 0"} if self.settings.steps else {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Refuse a recipe that quantizes no weight of a linear layer."""
        refuse_floating_weights("adaround", model, tools)

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Unit by unit in graph order, everything before it as quantized."""
        from ptq2themoon.quantize.learning.losses import Squared
        from ptq2themoon.quantize.learning.reconstruct import Learning, reconstruct

        learning = Learning(self.settings, Squared, **self.settings.schedule())
        reconstruct(model, tools, learning, by_layer=self.settings.unit == "layer")


METHOD = AdaRound
