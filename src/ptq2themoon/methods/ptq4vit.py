"""PTQ4ViT: two ranges after softmax and GELU, and scales searched by what errors do to the model's loss.

Yuan, Xue, Chen, Wu and Sun, "PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform
Quantization", ECCV 2022, arXiv 2111.12293, sections 3.2 and 3.3. With Y an operator's output in floating
point, Y^ its output with quantized factors, g the gradient of a loss L with respect to Y and w = g^2,

    minimise E[(Y^ - Y)^T diag(w) (Y^ - Y)]                                              equation 9

over multiples of each scale from alpha to beta, weights and inputs by turns, `rounds` times. Softmax's output
is quantized by `twin_uniform` with steps 1 / (2^(bits-1) - 1) above a split and that divided by 2^m below it;
m is searched from 0 to 19. GELU's output has the fixed step 0.16997 / 2^(bits-1) below 0, for -0.16997 is its
least value, and a searched one from 0 up. Both operands of the attention products have a scale for each head;
softmax's output has one split.

Rows of the paper's ablation: `hessian`, `softmax_twin` and `gelu_twin` all false; `hessian` alone; with
`softmax_twin`; all three; and the twins without `hessian`, whose score is the cosine of the output.

Where this differs from the paper or its released code:
- L is the cross entropy of labels drawn from the softmax of the model in floating point. The paper's L, the
  KL divergence from the model in floating point, has a zero gradient there, and the code, which takes it
  there, ranks by what rounding leaves of it. The mean square of this gradient is the Fisher information,
  which is the second derivative of the paper's L. (A perturbed output, as APHQ-ViT has it, is the other
  way to a gradient; it has a step and a temperature to choose.) A gradient of zeros is refused.
- A value belongs to one of softmax's two ranges. The code adds both.
- All n + 1 candidates are tried, and what calibration found is one more. The code leaves the last out.
- Weights are what the recipe says, in `recipes/ptq4vit.yaml` one scale for each output channel, each channel
  searched by itself; the paper has one for each of query, key, value, and each other layer.
- The patch embedding's input has 8 bits, as the papers' protocol says; the code leaves it in floating point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.graph.editing.onnx_graph import Graph, maker
from ptq2themoon.graph.editing.operator_types import DATA_MOVEMENT
from ptq2themoon.methods.base import (
    GELU_KIND,
    INPUT_SCALES,
    SOFTMAX_KIND,
    WEIGHT_SCALES,
    GridSettings,
    Method,
    refuse_fixed,
)
from ptq2themoon.vocabulary.errors import UserError

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.quantizers import Quantizer
    from ptq2themoon.quantize.quantizers.twin_uniform import TwinUniform
    from ptq2themoon.quantize.tools import Tools

GELU_LEAST = 0.16997  # below 0
SPLITS = 20  # 2^0 to 2^-19
TWIN = "twin_uniform"


class PTQ4ViTSettings(GridSettings):
    """What of the method is in force, and what is tried."""

    alpha: Annotated[float, Field(gt=0)] = 0.01
    """The least multiple of the scale that the recipe's observer found."""
    rounds: Annotated[int, Field(ge=0)] = 3
    """How often weights and inputs take turns at most; 0: nothing is searched."""
    hessian: bool = True
    """Errors weighted by squared gradients; false: the cosine of the output."""
    softmax_twin: bool = True
    """Two ranges for softmax's output."""
    gelu_twin: bool = True
    """Two ranges for GELU's output."""


class PTQ4ViT(Method):
    """Needs a recipe that quantizes what goes into linear layers and attention products."""

    Settings = PTQ4ViTSettings
    settings: PTQ4ViTSettings

    def decides(self) -> dict[str, str]:
        """Kinds, where they are switched on, and all scales that it searches."""
        on = self.settings
        found = {SOFTMAX_KIND: "softmax_twin: false"} if on.softmax_twin else {}
        found |= {GELU_KIND: "gelu_twin: false"} if on.gelu_twin else {}
        return found | ({INPUT_SCALES: "", WEIGHT_SCALES: ""} if on.rounds else {})

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Ask for two ranges where they are switched on."""
        planned = {
            (item.operator.name, t.operand, t.position) for item in tools.plan(model) for t in item.tensors
        }
        wanted = [("attn_context", "softmax_twin")] if self.settings.softmax_twin else []
        wanted += [("fc2", "gelu_twin")] if self.settings.gelu_twin else []
        readers = gelu_readers(model.graph())
        for role, setting in wanted:
            places = [
                operator
                for operator in model.operators
                if operator.role == role and (operator.name, "input", 0) in planned
            ]
            refuse_fixed("ptq4vit", tools, [place.name for place in places], "which would have another kind")
            if not places or (role == "fc2" and not all(place.name in readers for place in places)):
                what = "softmax's output" if role == "attn_context" else "GELU's output before every fc2"
                raise UserError(
                    f"ptq4vit: the recipe or the model has no quantized {what}; say {setting}: false"
                )
            tools.add_rule(
                "ptq4vit",
                {"select": {"role": role, "operand": "input", "position": 0}, "kind": TWIN,
                 "granularity": "per-tensor"},
            )  # fmt: skip

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Set what the paper fixes of the two ranges, and search the rest."""
        roles = {operator.name: operator.role for operator in model.operators}
        for slot, tensor in model.slots():
            quantizer, role = tensor.ready(), roles[slot.operator]
            if quantizer.kind == TWIN and role in ("attn_context", "fc2"):
                tensor.quantizer = fixed(quantizer, role)  # type: ignore[arg-type]
        found = tools.search_scales(
            model,
            self.settings,
            "mse" if self.settings.hessian else "cosine",
            alternatives=lambda slot, first: self._alternatives(first),
            gradients=self.settings.hessian,
        )
        if not found and self.settings.rounds:
            raise UserError(
                "ptq4vit: the recipe quantizes nothing with a scale to search; leave the method out"
            )

    def _alternatives(self, first: Quantizer) -> list[TwinUniform] | None:
        if first.kind != TWIN:
            return None
        twin: TwinUniform = first  # type: ignore[assignment]
        if twin.by == "size":
            return [twin.with_fine_scale(twin.scale * 2.0**-m) for m in range(SPLITS)]
        settings = self.settings
        step = (settings.beta - settings.alpha) / settings.n
        return [twin.with_scale(twin.scale * (settings.alpha + i * step)) for i in range(settings.n + 1)]


def fixed(twin: TwinUniform, role: str) -> TwinUniform:
    """With the steps that do not depend on images: of a softmax's large values, of GELU's negative ones."""
    half = 2 ** (twin.bits - 1)
    if role == "fc2":
        return type(twin)(twin.scale, twin.scale.new_tensor(GELU_LEAST / half), twin.bits, "sign")
    one = twin.scale.new_tensor(1 / (half - 1))
    return type(twin)(one, one * 2.0 ** (1 - twin.bits), twin.bits, "size")


def gelu_readers(graph: Graph) -> set[str]:
    """Operators whose first input is a GELU's output, moved or not."""
    found = set()
    for node in graph.nodes:
        made = maker(graph.producer, node.input[0], DATA_MOVEMENT) if node.input else None
        if made is not None and made.op_type == "Gelu":
            found.add(node.name)
    return found


METHOD = PTQ4ViT
