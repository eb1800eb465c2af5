"""What methods are given to work with: images, seed, device, and ways to look into the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq2themoon.graph.editing.operator_types import KEEPING_LAST_AXIS
from ptq2themoon.graph.forms.linear import Linear, linear_layers
from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.quantize.attention_order import ranked_scores
from ptq2themoon.quantize.calibration import calibrate, fit, observe
from ptq2themoon.quantize.factors import Alternatives, Grid, Product, products
from ptq2themoon.quantize.layer_error import output_error
from ptq2themoon.quantize.layers import Walk, fit_constant, input_maxima
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.migration import (
    Multiplied,
    NormGroup,
    ValuePath,
    multiplied,
    norm_groups,
    value_paths,
)
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.plan import plan
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.quantize.samples import sampled_inputs
from ptq2themoon.quantize.scores import SCORES, Ranked, Score
from ptq2themoon.quantize.search import search_scales, search_tensors
from ptq2themoon.quantize.sensitivity import input_sensitivities
from ptq2themoon.quantize.shift import Shiftable, remove_shift, shift, shiftable
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.states import States
from ptq2themoon.quantize.tensors import PARAMETERS, QuantizedOperator, QuantizedTensor, Slot
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.recipe_language import Rule
from ptq2themoon.vocabulary.recipes import Recipe
from ptq2themoon.vocabulary.validation import validate


@dataclass
class Tools:
    """Of one calibration.

    Attributes:
        recipe: with the rules that methods added.
        bits: of weights and of activations.
        batches: calibration images [B, C, H, W], normalised; may be iterated again and again.
        seed: of whatever a method draws.
        device: a torch device.
        state: where a training saves itself; None: nowhere.
        info: preprocessing and classes of the model; None where they are not known.
        prepared: names of the methods whose `before` is done.
        fixed_by: the method that chose the quantizer of a slot before calibration.
    """

    recipe: Recipe
    bits: tuple[int, int]
    batches: Iterable[Tensor]
    seed: int
    device: str
    state: State | None = None
    info: ModelInfo | None = None
    prepared: list[str] = field(default_factory=list)
    fixed_by: dict[Slot, str] = field(default_factory=dict)

    def add_rule(self, method: str, rule: Mapping[str, Any]) -> None:
        """A rule, written as in a recipe, that comes last and so wins; messages name the method."""
        self.recipe = self.recipe.with_rule(validate(Rule, rule, f"method {method}"), method)

    def plan(self, model: QuantizedModel) -> list[QuantizedOperator]:
        """What the recipe quantizes in the graph as edited so far, without quantizers."""
        return plan(model.operators, model.nodes(), self.recipe, *self.bits)

    def weighted_layers(self, model: QuantizedModel) -> list[Linear]:
        """Linear layers whose weight the recipe quantizes, in graph order."""
        plan = self.plan(model)
        weights = {item.operator.name for item in plan if any(t.operand == "weight" for t in item.tensors)}
        return [layer for layer in linear_layers(model.graph()) if layer.name in weights]

    def simulation(self, model: QuantizedModel) -> SimulatedModel:
        """The edited graph with the quantizers that are known; `only(())` switches them off."""
        return simulated(model, self.device)

    def floating(self, model: QuantizedModel) -> SimulatedModel:
        """The rewritten graph in floating point, whose output is the reference's."""
        return SimulatedModel(model.rewritten, self.device)

    def images(self, count: int | None) -> Tensor:
        """The first calibration images [N, C, H, W], all where `count` is None."""
        found: list[Tensor] = []
        for batch in self.batches:
            found.append(batch)
            if count is not None and sum(map(len, found)) >= count:
                break
        return torch.cat(found)[:count]

    def observe(self, model: QuantizedModel, wanted: Mapping[Slot, QuantizedTensor]) -> dict[Slot, Quantizer]:
        """Quantizers that the calibration images give to activations of the rewritten graph."""
        return observe(self.floating(model), wanted, self.batches)

    def show(self, model: QuantizedModel, slots: Iterable[Slot], see: Callable[[Slot, Tensor], None]) -> None:
        """Show `see` what is in these slots: parameters once, activations of the edited graph batch by batch.

        Nothing is quantized meanwhile.
        """
        simulation = self.simulation(model)
        operators: dict[str, list[Slot]] = {}
        for slot in slots:
            if slot.operand in PARAMETERS:
                see(slot, simulation.parameter(slot.operator, slot.position))
            else:
                operators.setdefault(slot.operator, []).append(slot)

        def hook(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
            for slot in operators[name]:
                see(slot, (outputs if slot.operand == "output" else inputs)[slot.position])

        with simulation.only(()):
            for images in self.batches if operators else ():
                simulation(images, dict.fromkeys(operators, hook))

    def calibrate(self, model: QuantizedModel) -> None:
        """Give every slot a quantizer that has none yet."""
        calibrate(self.simulation(model), model.quantized, self.batches)

    def fitted(self, slot: Slot, tensor: QuantizedTensor, value: np.ndarray) -> Quantizer:
        """The quantizer that the recipe's observer finds for a parameter of this value."""
        return fit(slot, tensor, torch.tensor(value, dtype=torch.float32))

    def fit_constant(self, model: QuantizedModel, operator: str, position: int, value: np.ndarray) -> Tensor:
        """A parameter's new value as the quantized model will have it, with a quantizer that fits it.

        It is on its grid where the recipe quantizes it, and `value` where it does not.
        """
        return fit_constant(model, operator, position, torch.from_numpy(value).to(self.device))

    def walk(self, model: QuantizedModel, layers: Collection[str], *, exact: bool = False) -> Walk:
        """All images taken through the quantized model, with a stop at each of these linear layers.

        Args:
            exact: take them through the model in floating point too, where stops ask for it.
        """
        simulation, floating = self.simulation(model), self.floating(model) if exact else None
        pair = None if floating is None else (floating.program(), self.states(floating))
        return Walk(model, layers, simulation.program(), self.states(simulation), self.device, pair)

    def input_maxima(self, model: QuantizedModel, operators: Collection[str]) -> dict[str, np.ndarray]:
        """Largest magnitude of each channel of operators' first inputs, float64 [channels], unquantized."""
        return input_maxima(self.floating(model), operators, self.batches)

    def norm_groups(
        self, model: QuantizedModel, *, past: frozenset[str] = KEEPING_LAST_AXIS
    ) -> list[NormGroup]:
        """LayerNorms that quantized linear layers alone read, past operators of these types."""
        return norm_groups(model, self.plan(model), past)

    def value_paths(self, model: QuantizedModel) -> list[ValuePath]:
        """Ways of attentions' values from the layer that makes them to the quantized one after attention."""
        return value_paths(model, self.floating(model), self.plan(model))

    def sampled_inputs(
        self, model: QuantizedModel, operators: Mapping[str, int], size: int
    ) -> dict[str, list[Tensor]]:
        """What operators read in floating point: `size` pieces of each at most, drawn evenly.

        Args:
            operators: dimensions of a piece, by operator: 1 for rows of channels, 2 for matrices.
        """
        return sampled_inputs(self.floating(model), self.batches, operators, size, self.seed)

    def output_error(
        self, model: QuantizedModel, layers: Sequence[str], x: Tensor
    ) -> Callable[[Tensor], float]:
        """The squared error of outputs of layers that all read `x` [rows, in], by what they read instead."""
        found = [layer for layer in linear_layers(model.graph()) if layer.name in layers]
        return output_error(found, self.plan(model), x)

    def shiftable(self, model: QuantizedModel, layers: Sequence[str]) -> list[Shiftable]:
        """How the inputs of these linear layers can be shifted by constants, in graph order."""
        return list(shiftable(model, layers))

    def shift(self, model: QuantizedModel, group: Shiftable, amount: np.ndarray) -> None:
        """Shift what a group of layers reads by `amount` [channels]; floating point stays equal."""
        shift(model, group, amount)

    def remove_shifts(self, model: QuantizedModel, amounts: Mapping[str, np.ndarray]) -> None:
        """After calibration: take out of biases what shifts, by layer, make of the weights' rounding."""
        biases = remove_shift(model, amounts)
        for (operator, position), value in biases.items():
            self.fit_constant(model, operator, position, value)
        model.set_parameters(biases, equal=False)

    def search_scales(
        self,
        model: QuantizedModel,
        grid: Grid,
        score: str,
        *,
        scores: Mapping[str, Score] | None = None,
        alternatives: Alternatives = lambda *_: None,
        gradients: bool = False,
    ) -> list[Product]:
        """Choose the scales of what goes into matrix products by the products' outputs.

        Args:
            grid: multiples to try, and how often the two factors take turns.
            score: a name of `SCORES`, or `tensor`: each quantized tensor by its own squared error.
            scores: of single operators, by name, in the place of `score`.
            alternatives: candidates of a slot in the place of multiples of its scale.
            gradients: whether squared errors are weighted by squared gradients.

        Returns:
            What was searched, with the loss before and after each turn.
        """
        graphs, own = (self.floating(model), self.simulation(model)), dict(scores or {})
        if score == "tensor":
            return search_tensors(model, graphs, self.batches, grid)

        def score_of(operator: str) -> Score:
            return own.get(operator) or SCORES[score]()

        found = products(model, graphs, grid, score_of, alternatives)
        seed = self.seed if gradients else None
        search_scales(found, graphs[0], self.batches, grid.rounds, seed)
        return found

    def multiplied(self, model: QuantizedModel) -> list[Multiplied]:
        """Linear layers quantized per tensor: a multiplication before them can divide their channels."""
        return multiplied(model, self.plan(model))

    def input_sensitivities(
        self, model: QuantizedModel, wanted: Mapping[Slot, QuantizedTensor]
    ) -> dict[str, float]:
        """Squared error of the output, by operator of which the first input alone is quantized so."""
        quantizers = {slot.operator: found for slot, found in self.observe(model, wanted).items()}
        with self.without_gradients():
            return input_sensitivities(self.floating(model), quantizers, self.batches)

    def ranked_scores(
        self, model: QuantizedModel, gamma: float, theta: float, pairs: int
    ) -> dict[str, Ranked]:
        """Scores of attention that keep the order of its keys, by the name of their product."""
        return ranked_scores(model, self.floating(model), gamma, theta, pairs, self.seed)

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Within the block the steps of a program run without gradients, and without PPQ's warnings."""
        with torch.inference_mode(), quiet_ppq():
            yield

    def channel_means(self, model: SimulatedModel, operators: Mapping[str, int]) -> dict[str, Tensor]:
        """Mean of each channel of operators' outputs, float64 [channels], over all images and tokens.

        Args:
            operators: the axis of the channels, by operator.
        """
        sums: dict[str, Tensor] = {}
        counts = dict.fromkeys(operators, 0)

        def add(name: str, _: list[Tensor], outputs: list[Tensor]) -> None:
            rows = outputs[0].movedim(operators[name], -1).flatten(0, -2).double()
            sums[name] = sums.get(name, torch.zeros(())) + rows.sum(0).cpu()
            counts[name] += len(rows)

        for images in self.batches:
            for part in model.parts(images):
                model(part, dict.fromkeys(operators, add))
        return {name: total / counts[name] for name, total in sums.items()}

    def states(self, model: SimulatedModel) -> States:
        """The values of each part of the images before the first operator of the model's program."""
        parts = (part for images in self.batches for part in model.parts(images))
        values = ({model.input_name: part.to(self.device)} for part in parts)
        return States(model.program(), values, self.device)
