"""QDrop: rounding of weights and scales of activations are learned while quantization is dropped at random.

Wei, Gong, Li, Liu and Yu, "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
Quantization", ICLR 2022, arXiv 2203.05740, section 4 and algorithm 1. Block by block as BRECQ; but

- each value of a quantized activation stays in floating point with the probability p, drawn at each step
  (equation 8), so that weights become flat over the range between quantized and not;
- each value that the block reads comes from the floating-point model with the same probability, else from the
  quantized one.

The loss is the squared error of the block's output. Rounding is AdaRound's.

Where this differs from the paper or its released code:
- `loss` also takes `brecq`, `aph` (APHQ-ViT, whose training this then is) and `fima` (FIMA-Q's).
- Kinds other than `uniform` keep their scale.
- The default preset `quick` trains far less than the paper's 20,000 iterations on 1,024 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import LAST_SCALES, ROUNDING, Method, Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import ReconstructionSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

Share = Annotated[float, Field(ge=0, le=1)]


class QDropSettings(ReconstructionSettings):
    """What is dropped, the loss, and how it is trained."""

    drop: Share = 0.5
    """Probability that a value of an activation is not quantized in a step."""
    floating_input: Share = 0.5
    """Probability that a value that a block reads comes from the floating-point model."""


class QDrop(Method):
    """Of every block with a quantized weight, and of what stands before, between and after blocks."""

    Settings = QDropSettings
    settings: QDropSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """How weights are rounded, and the scales of activations that it trains."""
        on = self.settings
        found = {ROUNDING: "iterations: 0"} if on.steps else {}
        return found | ({LAST_SCALES: "scale_rate: 0"} if on.steps and on.scale_rate != 0 else {})

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Refuse a recipe that quantizes no weight of a linear layer."""
        if not tools.weighted_layers(model):
            raise UserError("qdrop: the recipe quantizes no weight of a linear layer; leave it out")

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Block by block in graph order, what comes before it mixed."""
        from ptq2themoon.quantize.learning.losses import block_loss
        from ptq2themoon.quantize.learning.reconstruct import Learning, reconstruct

        settings = self.settings
        reconstruct(
            model,
            tools,
            Learning(
                settings,
                lambda unit: block_loss(settings.loss, unit, settings.steps),
                drop=settings.drop,
                input=settings.floating_input,
                **settings.schedule(),
            ),
        )


METHOD = QDrop
