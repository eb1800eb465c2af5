"""How one tensor is quantized, and which settings contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator, Role
from ptq2themoon.vocabulary.recipe_language import (
    Axis,
    Codes,
    Granularity,
    Kind,
    Observer,
    Operand,
    Symmetry,
)

# Roles of operators whose tensors have an axis of heads.
HEAD_ROLES: frozenset[Role] = frozenset({"attn_scores", "attn_scale", "softmax", "attn_context"})
KL_BITS = 5  # with fewer, PPQ's observer clips nearly everything
WEIGHT_KINDS: tuple[Kind, ...] = ("apot", "power_of_two")  # uneven levels around 0
PER_CHANNEL_OBSERVERS: tuple[Observer, ...] = ("minmax", "percentiles")


def code_range(bits: int, codes: Codes) -> tuple[int, int]:
    """Smallest and largest code of a uniform quantizer."""
    return (0, (1 << bits) - 1) if codes == "unsigned" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is quantized.

    Attributes:
        percentile: of the percentile observer, in percent.
        weight_axis: the side of a weight whose channels have a scale each when it is per channel;
            activations have them on their last axis.
    """

    quantize: bool
    bits: int
    granularity: Granularity
    observer: Observer
    percentile: float
    weight_axis: Axis
    kind: Kind = "uniform"
    symmetry: Symmetry = "symmetric"
    codes: Codes = "signed"

    @property
    def quant_min(self) -> int:
        """Smallest code of kind uniform."""
        return code_range(self.bits, self.codes)[0]

    @property
    def quant_max(self) -> int:
        """Largest code of kind uniform."""
        return code_range(self.bits, self.codes)[1]


def refuse_contradiction(
    spec: TensorSpec, origin: Callable[[str], str], operator: Operator, operand: Operand
) -> None:
    """`UserError` where settings that meet at one tensor contradict each other.

    Args:
        origin: where a setting was given, by its name.
    """
    where = operator.role or operator.name
    where += f"{'' if operator.block is None else f' in block {operator.block}'} ({operand})"
    if spec.granularity != "per-tensor" and spec.observer not in PER_CHANNEL_OBSERVERS:
        raise UserError(
            f"{origin('granularity')}: {spec.granularity} works only with observer "
            f"{' or '.join(PER_CHANNEL_OBSERVERS)}, but "
            f"{where} has {spec.observer!r} from {origin('observer')}"
        )
    if spec.granularity == "per-head" and (
        operand not in ("input", "output") or (operator.role is not None and operator.role not in HEAD_ROLES)
    ):
        raise UserError(
            f"{origin('granularity')}: {where} has no heads; per-head works for inputs and outputs of "
            f"{', '.join(sorted(HEAD_ROLES))}"
        )
    if spec.observer == "kl" and spec.bits < KL_BITS:
        raise UserError(
            f"{origin('observer')}: observer kl works from {KL_BITS} bits on, "
            f"but {where} has {spec.bits}; minmax, percentile and mse have no such limit"
        )
    if spec.observer == "kl" and (spec.kind, spec.symmetry, spec.codes) != ("uniform", "symmetric", "signed"):
        raise UserError(
            f"{origin('observer')}: observer kl works only for kind uniform, symmetric, with signed codes, "
            f"but {where} has {spec.kind}, {spec.symmetry}, {spec.codes}"
        )
    if spec.kind in WEIGHT_KINDS:
        if operand != "weight":
            raise UserError(f"{origin('kind')}: kind {spec.kind} is for weights, but selects {where}")
        return
    if spec.kind != "uniform" and spec.granularity != "per-tensor":
        raise UserError(
            f"{origin('kind')}: kind {spec.kind} is per-tensor, but {where} is {spec.granularity}"
        )
    if spec.kind != "uniform" and operand in ("weight", "bias"):
        raise UserError(f"{origin('kind')}: kind {spec.kind} is for activations, but selects {where}")
