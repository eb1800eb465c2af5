"""From recipes to calibrated models, for stages that try many of them on one graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ptq2themoon.data import CalibrationBatches
from ptq2themoon.graph.files import read_graph
from ptq2themoon.graph.nodes import Node, read_nodes
from ptq2themoon.graph.operators import ROLES, Operator, Role
from ptq2themoon.graph.report import read_operators
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
    """A fused model, read once.

    Attributes:
        inner: roles of the operators whose output is not the model's.
    """

    graph: Path
    operators: list[Operator]
    nodes: Mapping[str, Node]
    inner: list[Role]
    device: str

    @classmethod
    def read(cls, graph: Path, fusion: Path, device: str) -> Subject:
        operators, model = read_operators(fusion), read_graph(graph).graph
        outputs = {value.name for value in model.output}
        final = {node.name for node in model.node if not outputs.isdisjoint(node.output)}
        last = {operator.role for operator in operators if operator.name in final}
        quantizable = {operator.role for operator in operators if operator.type in QUANTIZABLE_TYPES}
        inner = [role for role in ROLES if role in quantizable - last]
        return cls(graph, operators, read_nodes(graph), inner, device)

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
        return plan(self.operators, self.nodes, recipe, *parse_bits(bits))

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
        return SimulatedModel(self.graph, self.device, quantized)
