"""From recipes to calibrated models, for stages that try many of them on one graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ptq2themoon.data import CalibrationBatches
from ptq2themoon.graph.fused import FusedModel
from ptq2themoon.graph.operators import ROLES, Role
from ptq2themoon.quantize.bits import parse_bits
from ptq2themoon.quantize.calibration import calibrate
from ptq2themoon.quantize.plan import QUANTIZABLE_TYPES, plan
from ptq2themoon.quantize.recipe import Recipe
from ptq2themoon.quantize.recipe_file import Rule, Select
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.study.names import Variant


@dataclass(frozen=True)
class Subject:
    """A fused model on a device.

    Attributes:
        inner: roles of the operators whose output is not the model's.
    """

    fused: FusedModel
    inner: list[Role]
    device: str

    @classmethod
    def read(cls, fused: FusedModel, device: str) -> Subject:
        operators, model = fused.operators, fused.graph.graph
        outputs = {value.name for value in model.output}
        final = {node.name for node in model.node if not outputs.isdisjoint(node.output)}
        last = {operator.role for operator in operators if operator.name in final}
        quantizable = {operator.role for operator in operators if operator.type in QUANTIZABLE_TYPES}
        inner = [role for role in ROLES if role in quantizable - last]
        return cls(fused, inner, device)

    def read_as(self, recipe: Recipe, variant: Variant) -> Recipe:
        """A variant of the recipe, as rules that come last."""
        axis: Literal["input", "output"] = "output" if variant == "output" else "input"
        recipe = recipe.with_rule(Rule(select=Select(), weight_axis=axis))
        if variant != "once":
            return recipe
        return recipe.with_rule(Rule(select=Select(role=self.inner, operand=["output"]), quantize=False))

    def plan(self, recipe: Recipe, bits: str) -> list[QuantizedOperator]:
        """The operators that the recipe quantizes, without scales.

        Raises:
            UserError: a rule that selects nothing in this model.
        """
        return plan(self.fused.operators, self.fused.nodes, recipe, *parse_bits(bits))

    def quantized(
        self, recipe: Recipe, bits: str, calibration: CalibrationBatches | Iterable[Tensor]
    ) -> list[QuantizedOperator]:
        """The same, calibrated as the stage calibrate does.

        Args:
            calibration: batches of images [B, C, H, W], normalised.
        """
        planned = self.plan(recipe, bits)
        calibrate(self.model(planned), planned, calibration)
        return planned

    def model(self, quantized: list[QuantizedOperator]) -> SimulatedModel:
        return SimulatedModel(self.fused.graph, self.device, quantized, source=self.fused.path)
