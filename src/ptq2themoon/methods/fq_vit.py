"""FQ-ViT: power-of-two factors for LayerNorm's input, log-int-softmax, and integers within both.

Lin, Zhang, Sun, Li and Zhou, "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer",
IJCAI 2022, arXiv 2111.13824, sections 3.2 and 3.3. In its own protocol, where all operators are quantized
(`recipes/fq_vit.yaml`).

- Power-of-two factors: one scale s and zero point z for the tensor, from its range. Channel c of LayerNorm's
  input has the scale 2^a_c s / 2^K, a_c from 0 to K = 3 and of least squared error, and the zero point z.
  Integers x_c << a_c then have one scale, s / 2^K, for mean and variance.
- Softmax's output has 4 bits, whatever the others have: code = round(-log2 x), scale 1 (kind `log2`), so that
  its product with the values is a shift of these.
- Integer LayerNorm: mean, variance and root of the integers, gamma and beta as an 8-bit multiplier M, a shift
  N and an offset B, and out = round((sign(A) M x + B) / 2^N) in the scale of what reads it.
- Integer softmax: i-exp of the scores' integers, x = -ln2 q + r, exp(r) = 0.3585 (r + 1.353)^2 + 0.344, and
  the code of an integer quotient's logarithm, which rounds at 1.5 where `log2` does at the square root of 2.

The equations of the last two, to the bit, are in `quantize/integer_arithmetic.py`. The simulation computes
them, and so measures what they cost in accuracy; of INT8 models, those of mode `faithful` do. Those of mode
`fast` compute both operators in floating point: runtimes have no kernel of theirs on integers.

Where this differs besides:
- Factors are chosen on all calibration images. The released code takes the last batch alone.
- Each tensor is quantized where it is read; the code does it where it is made. A residual sum is read with
  factors by the LayerNorm and without them by the next sum.
- The integers begin with the quantized model, so calibration sees both operators in floating point.
- The integer root and quotient round as integers do; the code takes those of floating point. Scores whose
  scale is above ln 2, as few bits give, are shifted left first: the paper's constants would be 0.
- A LayerNorm whose output is not read with one scale, and a softmax whose input has none (Swin's masked
  scores), stay in floating point.
- LayerNorm's gamma and beta are not quantized otherwise, and biases stay in floating point, as in the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ptq2themoon.methods.base import SOFTMAX_KIND, Method, Stage
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Uniform
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

NORMS = ("norm", "norm1", "norm2")
SOFTMAX = {"role": "attn_context", "operand": "input", "position": 0}


class FQViTSettings(Strict):
    """What of the method is in force; each can be switched off for an ablation."""

    factors: bool = True
    """LayerNorm's input with power-of-two factors."""
    largest: Annotated[int, Field(ge=1, le=8)] = 3
    """The largest exponent of a factor, K in the paper."""
    softmax: bool = True
    """Softmax's output as powers of two."""
    softmax_bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Of softmax's output."""
    integer_layernorm: bool = True
    """LayerNorm computed on integers."""
    integer_softmax: bool = True
    """Softmax computed on integers, where its output is powers of two by `softmax`."""


class FQViT(Method):
    """Needs a recipe that quantizes the inputs of LayerNorms, or of the product after softmax, per tensor."""

    Settings = FQViTSettings
    settings: FQViTSettings
    stage = Stage.OPERATORS

    def decides(self) -> dict[str, str]:
        """Softmax's quantizer, where it is switched on."""
        return {SOFTMAX_KIND: "softmax: false"} if self.settings.softmax else {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose the factors on all images, and softmax's quantizer."""
        if not (self.settings.factors or self.settings.softmax):
            return
        norms = _planned(model, tools, NORMS) if self.settings.factors else {}
        softmax = _planned(model, tools, ("attn_context",)) if self.settings.softmax else {}
        if not norms and not softmax:
            raise UserError(
                "fq_vit: the recipe quantizes no input of a LayerNorm, and none of the product after "
                "softmax, per tensor; extend recipes/fq_vit.yaml, which quantizes all operators"
            )
        if norms:
            self._take_norms(model, tools, norms)
        if softmax:
            self._take_softmax(model, tools, softmax)

    def _take_norms(
        self, model: QuantizedModel, tools: Tools, norms: dict[Slot, tuple[str, QuantizedTensor]]
    ) -> None:
        found: dict[Slot, Any] = tools.observe(model, {slot: tensor for slot, (_, tensor) in norms.items()})
        scales = {
            slot: [one.scale * 2.0 ** (k - self.settings.largest) for k in range(self.settings.largest + 1)]
            for slot, one in found.items()
        }
        errors: dict[Slot, Any] = dict.fromkeys(found, 0.0)

        def see(slot: Slot, value: Tensor) -> None:
            import torch

            off = [found[slot].with_scale(scale)(value) - value for scale in scales[slot]]
            rows = [each.flatten(0, -2).double().square().sum(0) for each in off]
            errors[slot] = errors[slot] + torch.stack(rows).cpu()

        tools.show(model, found, see)
        for role in sorted({role for role, _ in norms.values()}):
            select = {"role": role, "operand": "input"}
            rule = {"select": select, "granularity": "per-channel", "observer": "minmax"}
            tools.add_rule("fq_vit", rule)
        axes = {item.slot(tensor): tensor.axis for item in tools.plan(model) for tensor in item.tensors}
        for slot, one in found.items():
            model.fixed[slot] = with_factors(one, scales[slot], errors[slot], axes[slot])

    def _take_softmax(
        self, model: QuantizedModel, tools: Tools, softmax: dict[Slot, tuple[str, QuantizedTensor]]
    ) -> None:
        import torch

        tools.add_rule("fq_vit", {"select": SOFTMAX, "kind": "log2", "bits": self.settings.softmax_bits})
        wanted = {
            slot: tensor
            for item in tools.plan(model)
            for tensor in item.tensors
            if (slot := item.slot(tensor)) in softmax
        }
        for slot, quantizer in tools.observe(model, wanted).items():
            one: Any = quantizer
            model.fixed[slot] = one.with_scale(torch.tensor(1.0))

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Let operators compute on integers."""
        self.finish(model, tools)

    def finish(self, model: QuantizedModel, tools: Tools) -> None:
        """Give the integers of LayerNorms the scales that their readers have now."""
        from ptq2themoon.quantize.integer_arithmetic import IntegerLayerNorm, IntegerSoftmax
        from ptq2themoon.quantize.readers import Readers

        readers = Readers(model)
        for item in model.quantized:
            name, kind = item.operator.name, item.operator.type
            if kind == "LayerNormalization" and self.settings.integer_layernorm:
                scale = readers.scale_of_output(name) if readers.has_integers(name) else None
                item.arithmetic = None if scale is None else IntegerLayerNorm(scale)
            elif kind == "Softmax" and self.settings.softmax and self.settings.integer_softmax:
                read = readers.has_integers(name) and readers.kind_of_output(name) == "log2"
                item.arithmetic = IntegerSoftmax(self.settings.softmax_bits) if read else None


def with_factors(one: Uniform, scales: list[Tensor], errors: Tensor, axis: int | None) -> Uniform:
    """The per-channel quantizer with each channel's scale of least error, and the zero point of `one`.

    Args:
        scales: of all factors, each 0-d.
        errors: [factors, channels].
    """
    import torch

    chosen = errors.argmin(0)
    scale = torch.stack(list(scales))[chosen]
    bounds = one.quant_min, one.quant_max
    return type(one)(scale, one.zero_point.expand(scale.shape).clone(), one.bits, *bounds, axis)


def _planned(
    model: QuantizedModel, tools: Tools, roles: tuple[str, ...]
) -> dict[Slot, tuple[str, QuantizedTensor]]:
    """Roles and first inputs of operators with one of these roles, where they are quantized per tensor."""
    found = {}
    for item in tools.plan(model):
        for tensor in item.tensors:
            if item.operator.role not in roles or (tensor.operand, tensor.position) != ("input", 0):
                continue
            if tensor.spec.kind != "uniform" and item.operator.role == "attn_context":
                raise UserError(
                    f"fq_vit: what {item.operator.name} reads of softmax has kind {tensor.spec.kind} from a "
                    "rule; take it out, or say softmax: false"
                )
            if tensor.granularity == "per-tensor" and tensor.spec.kind == "uniform":
                found[item.slot(tensor)] = item.operator.role, tensor
    return found


METHOD = FQViT
