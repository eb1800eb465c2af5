"""BRECQ: how weights are rounded is learned block by block, by the block's output.

Li, Gong, Tan, Yang, Hu, Zhang, Yu, Wang and Gu, "BRECQ: Pushing the Limit of Post-Training Quantization by
Block Reconstruction", ICLR 2021, arXiv 2102.05426, section 3.2 and algorithm 1. For each block in order, z
its output in floating point, z^ as quantized, g the gradient of the model's loss for z:

    min E[(z^ - z)^T diag(g_1^2, ..., g_n^2) (z^ - z)]                                          equation 10

with AdaRound's soft rounding of all weights of the block, and its regulariser. The block reads what the
quantized model gives it. Activations' scales are learned too where `scale_rate` is above 0 (section 3.3,
there after the weights; here with them).

Where this differs from the paper or its released code:
- g is the gradient of the KL divergence between the logits that the block as calibrated leads to, all after
  it in floating point, and those of floating point. Of floating point with itself it would be 0.
- `loss` also takes `mse` (no weights), `aph` (APHQ-ViT) and `fima` (FIMA-Q); on ViTs squared gradients
  are reported to be worse than none.
- The default preset `quick` trains far less than the paper's 20,000 iterations on 1,024 images.
"""

from __future__ import annotations

from typing import Literal

from ptq2themoon.methods.base import Reconstruction
from ptq2themoon.vocabulary.training_settings import ReconstructionSettings


class BRECQSettings(ReconstructionSettings):
    """The loss, and how it is trained."""

    loss: Literal["mse", "brecq", "aph", "fima"] = "brecq"
    """What weighs the squared errors of a block's output."""


class BRECQ(Reconstruction):
    """Of every block with a quantized weight, and of what stands before, between and after blocks."""

    name = "brecq"
    Settings = BRECQSettings


METHOD = BRECQ
