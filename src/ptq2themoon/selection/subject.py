"""From recipes to calibrated models, for stages that try many of them on one graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ptq2themoon.data import CalibrationBatches
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.recipe_language import Rule, Select
from ptq2themoon.vocabulary.recipes import Recipe
from ptq2themoon.vocabulary.study_layout import Variant


@dataclass(frozen=True)
class Subject:
    """A fused model on a device."""

    fused: FusedModel
    device: str

    def read_as(self, recipe: Recipe, variant: Variant) -> Recipe:
        """A reading of the recipe: the axis of per-channel weights, and where activations are quantized."""
        axis: Literal["input", "output"] = "output" if variant == "output" else "input"
        recipe = recipe.with_rule(Rule(select=Select(), weight_axis=axis))
        return replace(recipe, activations="once") if variant == "once" else recipe

    def plan(self, recipe: Recipe, bits: str) -> list[QuantizedOperator]:
        """The operators that the recipe quantizes, without scales.

        Raises:
            UserError: a rule that selects nothing in this model.
        """
        return plan(self.fused.operators, self.fused.nodes, recipe, *parse_bits(bits))

    def quantized(
        self, recipe: Recipe, bits: str, calibration: CalibrationBatches | Iterable[Tensor], seed: int = 0
    ) -> QuantizedModel:
        """The model quantized as the stage calibrate does.

        Args:
            calibration: batches of images [B, C, H, W], normalised.
            seed: of what methods draw.
        """
        fused, parsed = self.fused, parse_bits(bits)
        given = fused.graph, fused.operators, recipe, parsed, calibration, self.device, seed
        return quantize(*given, info=fused.info)

    def model(self, quantized: list[QuantizedOperator]) -> SimulatedModel:
        """The fused graph, as no method edited it, with these quantizers."""
        return SimulatedModel(self.fused.graph, self.device, quantized, source=self.fused.path)

    def simulated(self, model: QuantizedModel) -> SimulatedModel:
        """The edited graph with its quantizers."""
        return simulated(model, self.device)
