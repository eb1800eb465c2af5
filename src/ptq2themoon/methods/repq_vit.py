"""RepQ-ViT: quantize LayerNorm's output per channel, then make it per tensor by re-parameterisation.

Li, Xiao, Yang and Gu, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers", ICCV 2023, arXiv 2212.08254, sections 3.3 and 3.4. Channel c of the input of the layers
that read a LayerNorm has scale s_c and zero point z_c. With s~ and z~ their means, r1 = s / s~, r2 = z - z~:

    gamma' = gamma / r1            beta' = (beta + s * r2) / r1                          equations 6, 7
    W'[c, :] = r1_c * W[c, :]      b' = b - (s * r2) W                                   equations 8, 9

The graph's function stays what it is, and a quantizer of one scale s~ and one zero point z~ gives the codes
that the quantizer per channel gave. The weights are calibrated afterwards. Softmax's output has codes of
powers of the square root of two (`log_sqrt2`).

Where this differs from the paper or its released code:
- z~ is rounded to a whole number, which runtimes need; the paper's mean is none.
- Scales come from the model in floating point. The code sets each on first use, on a quantized prefix.
- LayerNorms are found by the graph's structure: every one that linear layers alone read. The code takes
  all modules with "norm" in their name.
- Where zeros are padded between LayerNorm and layer (Swin), r2 is 0: a shift would not leave them zeros.
- Weights are what the recipe says, in `recipes/repq_vit.yaml` symmetric; the paper's are asymmetric. Integer
  kernels take no zero point for each output channel. A last rule `{select: {operand: weight}, symmetry:
  asymmetric}` makes them the paper's, and then the layers stay in floating point in the INT8 models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ptq2themoon.methods.base import SOFTMAX_KIND, Method, refuse_fixed, refuse_trained, refuse_widened
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    import numpy as np

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.tools import Tools


class RepQViTSettings(Strict):
    """What of the method is in force; each can be switched off for an ablation."""

    layernorm: Literal["reparameterized", "per-channel", "per-tensor"] = "reparameterized"
    """How LayerNorm's output is quantized; `per-channel` is what the re-parameterisation stands for."""
    log_sqrt2: bool = True
    """Softmax's output in powers of the square root of two; no integer kernel takes those."""


class RepQViT(Method):
    """Needs a recipe that quantizes the inputs of linear layers once, per tensor."""

    Settings = RepQViTSettings
    settings: RepQViTSettings

    def decides(self) -> dict[str, str]:
        """Softmax's quantizer, where it is switched on."""
        return {SOFTMAX_KIND: "log_sqrt2: false"} if self.settings.log_sqrt2 else {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose softmax's quantizer, and rewrite LayerNorms and the layers that read them."""
        if self.settings.log_sqrt2:
            tools.add_rule(
                "repq_vit",
                {"select": {"role": "attn_context", "operand": "input", "position": 0}, "kind": "log_sqrt2"},
            )
        if self.settings.layernorm == "per-tensor":
            return
        refuse_trained("repq_vit", tools)
        groups = tools.norm_groups(model)
        if not groups:
            refuse_widened("repq_vit", tools)
            raise UserError(
                "repq_vit: no LayerNorm is read by quantized linear layers alone; "
                "say layernorm: per-tensor, or quantize the inputs of qkv and fc1 per tensor"
            )
        read = {name for group in groups for name in group.readers}
        refuse_fixed("repq_vit", tools, read, "which re-parameterisation would change")
        found = tools.observe(model, {slot: t for group in groups for slot, t in group.per_channel.items()})
        for group in groups:
            per_channel: Uniform = found[next(iter(group.per_channel))]  # type: ignore[assignment]
            if self.settings.layernorm == "per-channel":
                model.fixed |= dict.fromkeys(group.per_channel, per_channel)
            else:
                per_tensor, r1, shift = means(per_channel)
                group.rescale(model, r1, shift)
                model.fixed |= dict.fromkeys(group.per_channel, per_tensor)


def means(per_channel: Uniform) -> tuple[Uniform, np.ndarray, np.ndarray]:
    """The quantizer of mean scale and zero point, r1 and s * r2, both float64 [channels]."""
    scale = per_channel.scale.double()
    zero_point = per_channel.zero_point.double()
    mean = zero_point.mean().round()
    one = type(per_channel)(
        scale.mean().float(),
        mean.float(),
        per_channel.bits,
        per_channel.quant_min,
        per_channel.quant_max,
        None,
    )
    r1 = scale / one.scale.double()
    return one, r1.numpy(), (scale * (zero_point - mean)).numpy()


METHOD = RepQViT
