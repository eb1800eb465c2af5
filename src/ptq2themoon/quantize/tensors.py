"""What is quantized: the tensors at each operator, and the quantizer of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ptq2themoon.quantize.integer_arithmetic import Arithmetic
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipe_language import Granularity, Operand
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

PARAMETERS: tuple[Operand, ...] = ("weight", "bias")


class Slot(NamedTuple):
    """A place where a tensor is quantized: an input or an output of one operator.

    Attributes:
        operand: what the tensor is to its operator.
        position: index among the operator's inputs, or among its outputs when `operand` is output.
    """

    operator: str
    operand: Operand
    position: int


@dataclass
class QuantizedTensor:
    """One slot of an operator with the way in which it is quantized.

    Attributes:
        spec: what the recipe says of it.
        axis: of the channels or heads that have a scale each; None: per tensor.
        quantizer: None before calibration.
    """

    operand: Operand
    position: int
    spec: TensorSpec
    axis: int | None
    quantizer: Quantizer | None = field(default=None, compare=False)

    @property
    def scale(self) -> Tensor | None:
        """float32, 0-d per tensor, [channels] along `axis`; None before calibration."""
        return None if self.quantizer is None else self.quantizer.scale

    @property
    def granularity(self) -> Granularity:
        """What is in force: a tensor without an axis of channels is per tensor whatever the recipe says."""
        return "per-tensor" if self.axis is None else self.spec.granularity

    @property
    def is_parameter(self) -> bool:
        """Whether it is a weight or a bias, whose values are known before any image is."""
        return self.operand in PARAMETERS

    def ready(self) -> Quantizer:
        """The quantizer of a calibrated tensor."""
        assert self.quantizer is not None
        return self.quantizer


@dataclass
class QuantizedOperator:
    """An operator with its quantized tensors, inputs first.

    Attributes:
        arithmetic: how it computes on the integers of its first input; None: in floating point.
    """

    operator: Operator
    tensors: list[QuantizedTensor]
    arithmetic: Arithmetic | None = None

    def slot(self, tensor: QuantizedTensor) -> Slot:
        """The slot of one of the operator's tensors."""
        return Slot(self.operator.name, tensor.operand, tensor.position)
