"""Liu et al. 2021: scales by similarity, attention that keeps its order, and bits where they are needed.

Liu, Wang, Han, Zhang, Ma and Gao, "Post-Training Quantization for Vision Transformer", NeurIPS 2021, arXiv
2106.14156, section 3. With Y an operator's output in floating point, Y^ with quantized factors and G their
Pearson correlation, multiples of each scale are searched, weights and inputs by turns, to maximise

    G(Y, Y^)                 of linear layers and of the product of attention and values     section 3.1
    G(Y, Y^) - gamma L_rank  of the product of queries and keys                              section 3.2

L_rank is the mean over pairs of keys i, j of a query of max(0, theta - (A^_i - A^_j) sign(A_i - A_j)), with A
the attention. The paper's third part, bias correction, is the method `bias_correction`; the recipe calls it
next. The fourth is mixed precision, section 3.3, where `budget` is given: the attention and the MLP of each
block take the bits b that minimise the sum of

    |F|_* |Q_b(W) - W|^2     with F the attention map, or the MLP's output, and |.|_* its nuclear norm

while the weights' mean bits stay within the budget.

Where this differs from the paper:
- A pair's keys lie `pairs` drawn distances apart, the same for all queries; the paper takes all pairs. L_rank
  is a mean, so gamma does not depend on their number. gamma and theta are this project's.
- L_rank is taken where the scales of queries and keys are searched, and not again for the layers before.
- The sum is the least that there is, by an exact program (`quantize/allocation.py`). The nuclear norm is the
  mean over images and heads. Inputs keep the bits of the recipe.
- A nuclear norm is divided by the mean of its like, attentions or MLPs, for the two have other units: rows
  of an attention map sum to 1, so its norm is a hundredth of an output's, and as it is the criterion takes
  bits from every attention. `relative_norms: false` is the paper's form.
- The scale that calibration found is a candidate too. Where each output channel has a scale of its own, it
  takes the candidate that is best for this channel. Correlation does not see a factor, so between candidates
  of equal correlation the squared error decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ptq2themoon.methods.base import BITS, INPUT_SCALES, WEIGHT_SCALES, GridSettings, Method
from ptq2themoon.vocabulary.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
    from ptq2themoon.quantize.tools import Tools

# Of each part of a block: roles of its linear layers, and of the operator whose output is its feature.
PARTS = {
    "attention": (("qkv", "q", "k", "v", "qk", "kv", "proj"), "softmax"),
    "mlp": (("fc1", "fc2"), "fc2"),
}


class Liu2021Settings(GridSettings):
    """What is tried, how attention's order counts, and the budget of mixed precision."""

    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss of attention's order; 0: similarity alone."""
    theta: Annotated[float, Field(ge=0)] = 0.0
    """By how much a key's attention should stay above another's."""
    pairs: Annotated[int, Field(ge=1)] = 8
    """With how many others each key is compared."""
    budget: Annotated[float, Field(ge=2, le=16)] | None = None
    """Mean bits of the weights in attention and MLP; null: each has the bits of params.yaml."""
    relative_norms: bool = True
    """Nuclear norms beside the mean of attentions, or of MLPs; false: as they are, as the paper has it."""
    choices: Annotated[list[Annotated[int, Field(ge=2, le=16)]], Field(min_length=1)] = [2, 3, 4, 5, 6, 7, 8]
    """Bits that mixed precision may give to a block's attention or MLP."""


class Liu2021(Method):
    """Needs a recipe that quantizes what goes into linear layers; the budget needs weights of blocks."""

    Settings = Liu2021Settings
    settings: Liu2021Settings

    def decides(self) -> dict[str, str]:
        """All scales that it searches, and bits where there is a budget."""
        found = {INPUT_SCALES: "", WEIGHT_SCALES: ""} if self.settings.rounds else {}
        return found if self.settings.budget is None else found | {BITS: "budget: null"}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Choose bits where there is a budget."""
        budget, choices = self.settings.budget, sorted(set(self.settings.choices))
        if budget is None:
            return
        modules = sensitivities(model, tools, choices, relative=self.settings.relative_norms)
        if not modules:
            raise UserError("liu2021: the recipe quantizes no weight of a block; leave budget out")
        if choices[0] > budget:
            raise UserError(f"liu2021: budget {budget} is below the fewest bits of choices, {choices[0]}")
        for module, bits in zip(modules, spread(modules, choices, budget), strict=True):
            rule = {"role": module.roles, "block": module.block, "operand": "weight"}
            tools.add_rule("liu2021", {"select": rule, "bits": bits})

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Search from the scales that calibration gave."""
        settings = self.settings
        scores = tools.ranked_scores(model, settings.gamma, settings.theta, settings.pairs)
        found = tools.search_scales(model, settings, "pearson", scores=scores if settings.gamma else None)
        if not found and settings.rounds:
            raise UserError("liu2021: the recipe quantizes nothing with a scale to search; leave it out")


@dataclass
class Module:
    """The attention or the MLP of a block.

    Attributes:
        part: of `PARTS`.
        feature: where its feature is.
        size: elements of its weights.
        norm: mean nuclear norm of its feature.
        errors: squared error of its weights, for each choice of bits.
    """

    part: str
    block: int
    roles: list[str]
    feature: Slot
    weights: dict[Slot, QuantizedTensor]
    size: int = 0
    norm: float = 0.0
    errors: list[float] = field(default_factory=list)

    @property
    def sensitivity(self) -> list[float]:
        """For each choice of bits."""
        return [self.norm * error for error in self.errors]


def sensitivities(
    model: QuantizedModel, tools: Tools, choices: Sequence[int], *, relative: bool
) -> list[Module]:
    """Every part of a block with quantized weights, in graph order, with what bits do to it.

    Args:
        relative: whether norms are divided by the mean of those of the same part.
    """
    from ptq2themoon.quantize.bit_sites import at_bits

    modules = _modules(model, tools)
    weights = {slot: module for module in modules for slot in module.weights}
    features = {module.feature: module for module in modules}
    counts = dict.fromkeys(features, 0)

    def see(slot: Slot, value: Tensor) -> None:
        import torch

        if slot in weights:
            module, tensor = weights[slot], weights[slot].weights[slot]
            tried = [at_bits(tensor, bits) for bits in choices]
            off = [tools.fitted(slot, each, value.cpu().numpy())(value) - value for each in tried]
            errors = [float(error.double().square().sum()) for error in off]
            module.errors = [a + b for a, b in zip(module.errors or [0.0] * len(off), errors, strict=True)]
            module.size += value.numel()
        else:
            norms = torch.linalg.matrix_norm(value.double(), "nuc")
            features[slot].norm += float(norms.sum())
            counts[slot] += norms.numel()

    tools.show(model, [*weights, *features], see)
    for slot, module in features.items():
        module.norm /= max(counts[slot], 1)
    if relative:
        means = {part: fmean(m.norm for m in modules if m.part == part) for part in {m.part for m in modules}}
        for module in modules:
            module.norm /= means[module.part]
    return modules


def _modules(model: QuantizedModel, tools: Tools) -> list[Module]:
    places = {(operator.role, operator.block): operator.name for operator in model.operators}
    found: dict[tuple[int, str], Module] = {}
    for item in tools.plan(model):
        block = item.operator.block
        for part, (roles, feature) in PARTS.items():
            if block is None or item.operator.role not in roles or (feature, block) not in places:
                continue
            for tensor in item.tensors:
                if tensor.operand == "weight":
                    slot = item.slot(tensor)
                    at = slot._replace(operator=places[feature, block], operand="output", position=0)
                    module = found.setdefault((block, part), Module(part, block, [], at, {}))
                    module.roles.append(str(item.operator.role))
                    module.weights[slot] = tensor
    return list(found.values())


def spread(modules: Sequence[Module], choices: Sequence[int], budget: float) -> list[int]:
    """Bits for each module, of the least sum of sensitivities.

    Args:
        choices: at least one of them within the budget.
        budget: mean bits of a weight.
    """
    from ptq2themoon.quantize.allocation import allocate

    costs = [[bits * module.size for bits in choices] for module in modules]
    limit = budget * sum(module.size for module in modules)
    return [choices[index] for index in allocate(costs, [module.sensitivity for module in modules], limit)]


METHOD = Liu2021
