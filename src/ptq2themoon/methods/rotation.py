"""Rotation: orthogonal matrices, which the weights take in, spread outliers of channels over all channels.

The first part of GLF-Q, a preprint of 2026 on Vision Transformers without released code, made of:
Ashkboos, Croci, Gennari do Nascimento, Hoefler and Hensman, "SliceGPT: Compress Large Language Models by
Deleting Rows and Columns", ICLR 2024, arXiv 2401.15024, sections 3.1 to 3.3: LayerNorm becomes RMSNorm, whose
input and output can be rotated; and Ashkboos, Mohtashami, Croci, Li, Jaggi, Alistarh, Hoefler and Hensman,
"QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", NeurIPS 2024, arXiv 2404.00456, sections 3 and 4:
randomized Hadamard matrices. In floating point the model's output stays what it is. With M = I - 1 1^T / C,
D a diagonal of drawn signs and H a Hadamard matrix:

    residual   R1 = D H / sqrt(C). Patches, class and register tokens, positions, and weights and biases of
               proj and fc2: W_out <- W_out M R1. Layers that read a LayerNorm: b_in <- b_in + beta W_in,
               W_in <- R1^T diag(gamma) W_in. LayerScale goes into the layer before it first.
    qk         R2, of a head's size: q <- q R2, k <- k R2, for q R2 (k R2)^T = q k^T
    values     R3, of a head's size: v <- v R3, W_proj <- R3^T W_proj, head by head

`norm: rmsnorm` is the paper's: each LayerNorm becomes x / sqrt(mean(x^2) + epsilon). The default,
`norm: layernorm`, needs no other operator. It follows R1 by the reflection after which R1 1 = 1: what is
written has no mean, so x R1 has none either, and LayerNormalization without gamma and beta gives the same as
RMSNorm. Entries of R1 change by the order of 1 / C where they are of the order of 1 / sqrt(C). All runtimes
have a kernel for it, and methods that come after find LayerNorms with parameters to migrate scales into.

Where this differs from the papers:
- R2 and R3 are there for queries, keys and values of all heads of a block alike. QuaRot rotates queries and
  keys at run time, after rotary positions, and mixes heads; here nothing is computed at run time.
- fc2's input is not rotated: GELU lets no rotation pass, and QuaRot computes that one at run time.
- Sizes without a known Hadamard matrix (2^k times 1 or an order of Paley's, `quantize/hadamard.py`) get a
  random orthogonal matrix by QR.
- A model of which one stream or attention cannot be rotated is refused, not rotated in part. Swin's streams
  begin at a LayerNorm and patch merging puts channels of four tokens side by side; with rotary positions, or
  norms of queries and keys, no rotation stands between the layer and the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ptq2themoon.methods.base import Method
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    import numpy as np

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

PARTS = ("residual", "qk", "values")


class RotationSettings(Strict):
    """What is rotated; each part can be switched off for an ablation."""

    residual: bool = True
    """The residual stream, by one matrix."""
    qk: bool = True
    """Queries and keys of each head."""
    values: bool = True
    """Values of each head, turned back by the projection after attention."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """What a LayerNorm of a rotated stream becomes; layernorm: one without parameters."""


class Rotation(Method):
    """Comes before all methods that rewrite the graph or choose quantizers: it mixes the channels."""

    Settings = RotationSettings
    settings: RotationSettings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Rewrite all layers that write or read what is rotated."""
        on = self.settings
        if not (on.residual or on.qk or on.values):
            return
        if model.rewrite or model.changes or model.fixed:
            raise UserError(
                f"rotation: {' and '.join(tools.prepared)} came before it, and a rotation would undo that: "
                "it takes LayerNorms' parameters and mixes channels; name rotation first"
            )
        if on.residual:
            self._residual(model, tools)
        if on.qk or on.values:
            self._heads(model, tools)

    def _residual(self, model: QuantizedModel, tools: Tools) -> None:
        from ptq2themoon.quantize.hadamard import keeping_ones, random_rotation
        from ptq2themoon.quantize.rotating import NoRotationError, rotate_streams, streams_of

        rms, rng = self.settings.norm == "rmsnorm", self._generator(tools, "residual")
        try:
            streams = streams_of(model)
            drawn = [random_rotation(stream.channels, rng) for stream in streams]
            rotations = drawn if rms else [keeping_ones(rotation) for rotation in drawn]
            rotate_streams(model, streams, rotations, rms=rms)
        except NoRotationError as reason:
            raise UserError(
                f"rotation: the residual stream cannot be rotated, {reason}; say residual: false"
            ) from None

    def _heads(self, model: QuantizedModel, tools: Tools) -> None:
        from ptq2themoon.quantize.hadamard import random_rotation
        from ptq2themoon.quantize.heads import Attentions
        from ptq2themoon.quantize.rotating import rotate_heads, rotate_values

        attentions = Attentions(model, tools.floating(model))
        blocks = sorted({o.block for o in model.operators if o.block is not None})
        if self.settings.qk:
            rng = self._generator(tools, "qk")
            for block in blocks:
                heads = attentions.queries_and_keys(block)
                if isinstance(heads, str):
                    raise _refused("queries and keys", block, heads, "qk")
                rotate_heads(model, heads, random_rotation(len(heads[0].columns), rng))
        if self.settings.values:
            rng = self._generator(tools, "values")
            for block in blocks:
                values = attentions.values(block)
                if isinstance(values, str):
                    raise _refused("values", block, values, "values")
                rotate_values(model, values, random_rotation(len(values.rows[0]), rng))

    def _generator(self, tools: Tools, part: str) -> np.random.Generator:
        """One for each part, so that switching one off leaves the others what they are."""
        import numpy as np

        return np.random.default_rng([tools.seed, PARTS.index(part)])


def _refused(what: str, block: int, reason: str, setting: str) -> UserError:
    return UserError(
        f"rotation: the {what} of block {block} cannot be rotated, {reason}; say {setting}: false"
    )


METHOD = Rotation
