"""GLF-Q's training: a block's weights and scales, by its own output and by what the model makes of it.

"GLF-Q", Nanjing University, preprint of 2026, its block training. No code of the authors was found. Block by
block in order, what the block reads coming from the quantized model, weights W, biases and scales of
activations and weights are trained straight through rounding (no learned rounding), by

    L_global / L_global,0 + lambda L_local / L_local,0

L_local being the mean squared error of the block's output, L_global that of the feature which the classifier
reads when all after the block is in floating point; L_.,0 are their values in the first batch.

With `rotation` and `relu_mlp` before it, it is the paper's pipeline. The paper's figures were not reproduced
here: that takes ImageNet and its checkpoints.

Where this differs from the paper:
- What stands before and after the blocks is trained as a block is, the last by its own output alone.
- A model without a classifier is judged by its output in the place of the feature.
- The default preset `quick` trains far less than the paper's 3,000 iterations on 1,024 images, with
  larger learning rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import LAST_SCALES, ROUNDING, Method, Stage, refuse_floating_weights
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import Preset, TrainingSettings

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

STEPS: dict[Preset, int] = {"quick": 100, "paper": 3000}
RATE: dict[Preset, float] = {"quick": 3e-4, "paper": 2e-5}
SCALE_RATE: dict[Preset, float] = {"quick": 1e-3, "paper": 2e-4}


class GLFQSettings(TrainingSettings):
    """How much the two errors count, and how they are trained."""

    local: Annotated[float, Field(ge=0)] = 2.0
    """How much the error of the block's own output counts, lambda in the paper."""
    total: bool = True
    """Count the error of the classifier's feature too."""
    rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of weights and biases, falling along half a cosine; null: the preset's, 3e-4 and 2e-5."""
    scale_rate: Annotated[float | None, Field(ge=0)] = None
    """Learning rate of scales, which falls likewise; 0: they stay; null: the preset's, 1e-3 and 2e-4."""

    @property
    def steps(self) -> int:
        """Iterations of a block."""
        return self.or_preset(self.iterations, STEPS)


class GLFQ(Method):
    """Of every block with a quantized weight, and of what stands before, between and after blocks."""

    Settings = GLFQSettings
    settings: GLFQSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """Weights and scales, which it trains for the rounding."""
        return dict.fromkeys((ROUNDING, LAST_SCALES), "iterations: 0") if self.settings.steps else {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Refuse a recipe that quantizes no weight of a linear layer."""
        refuse_floating_weights("glf_q", model, tools)
        if not (self.settings.local or self.settings.total):
            raise UserError("glf_q: local: 0 and total: false leave no error to train by; give one of them")

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Block by block in graph order, everything before it as quantized."""
        from ptq2themoon.quantize.learning.losses import LocalAndTotal
        from ptq2themoon.quantize.learning.reconstruct import Learning, reconstruct

        settings = self.settings
        rate = settings.or_preset(settings.rate, RATE)
        of_scales = settings.or_preset(settings.scale_rate, SCALE_RATE)
        reconstruct(
            model,
            tools,
            Learning(
                settings,
                lambda unit: LocalAndTotal(unit, settings.local, total=settings.total),
                rounding=False,
                rate=rate,
                scale_rate=of_scales,
                weight_scale_rate=of_scales,
                cosine=True,
            ),
        )


METHOD = GLFQ
