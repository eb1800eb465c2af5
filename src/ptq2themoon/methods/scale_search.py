"""Scale search: of many multiples of each scale, take the one that does least to the layer's output.

Wu, Tang, Zhao, Zhang, Fu and Zhang, "EasyQuant: Post-training Quantization via Scale Optimization", arXiv
2006.16669, section 3. With Y the output of a layer in floating point and Y^ its output with quantized
weights and inputs, the scales S_w and S_x are found by turns, one while the other is kept:

    S_w <- argmax cos(Y, Y^) over S_w, then S_x <- argmax cos(Y, Y^) over S_x,

over n + 1 candidates from alpha S to beta S, with S the scale of the whole range. As the base of later
methods (PTQ4ViT, Liu et al.) it is used with other scores too: `mse`, `l2` and `pearson`. With `tensor` no
layer is looked at: each tensor takes the scale of its own least squared error.

Where this differs from the paper or its released code:
- S is what the recipe's observer found; in the recipe it is the whole range, as in the paper.
- Where a weight has a scale for each output channel, or an operand of an attention product one for each
  head, each takes what is best for its own part of the output.
- An asymmetric range is scaled as a whole: its zero point stays.
- The scale that calibration found is a candidate too, so no turn makes the score worse.
- All n + 1 candidates are tried; code derived from EasyQuant's makes them and leaves the last out.
- Each layer is searched on its inputs in floating point, so layers do not depend on each other. EasyQuant
  leaves this open; PTQ4ViT reports that inputs from a quantized prefix are worse with few images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ptq2themoon.methods.base import INPUT_SCALES, WEIGHT_SCALES, GridSettings, Method
from ptq2themoon.vocabulary.errors import UserError

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class ScaleSearchSettings(GridSettings):
    """The score, and what is tried."""

    score: Literal["cosine", "mse", "l2", "pearson", "tensor"] = "cosine"
    """What compares a layer's outputs; `tensor`: the squared error of each tensor by itself."""


class ScaleSearch(Method):
    """Of linear layers, convolutions and attention products; `tensor`: of whatever the recipe quantizes."""

    Settings = ScaleSearchSettings
    settings: ScaleSearchSettings

    def decides(self) -> dict[str, str]:
        """All scales that it searches."""
        return {INPUT_SCALES: "", WEIGHT_SCALES: ""} if self.settings.rounds else {}

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Search from the scales that calibration gave."""
        found = tools.search_scales(model, self.settings, self.settings.score)
        if not found and self.settings.rounds:
            raise UserError(
                "scale_search: the recipe quantizes nothing with a scale to search; leave the method out"
            )


METHOD = ScaleSearch
