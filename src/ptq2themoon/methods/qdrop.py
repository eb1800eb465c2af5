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

from typing import Annotated, Any

from pydantic import Field

from ptq2themoon.methods.base import Reconstruction
from ptq2themoon.vocabulary.training_settings import ReconstructionSettings

Share = Annotated[float, Field(ge=0, le=1)]


class QDropSettings(ReconstructionSettings):
    """What is dropped, the loss, and how it is trained."""

    drop: Share = 0.5
    """Probability that a value of an activation is not quantized in a step."""
    floating_input: Share = 0.5
    """Probability that a value that a block reads comes from the floating-point model."""

    def schedule(self) -> dict[str, Any]:
        """As `Learning` takes it."""
        return {**super().schedule(), "drop": self.drop, "input": self.floating_input}


class QDrop(Reconstruction):
    """Of every block with a quantized weight, and of what stands before, between and after blocks."""

    name = "qdrop"
    Settings = QDropSettings


METHOD = QDrop
