"""What a method is: settings that a recipe can give, and what it does before and after calibration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import ReconstructionSettings
from ptq2themoon.vocabulary.validation import Positive, Strict

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class NoSettings(Strict):
    """Of a method that has none."""


class GridSettings(Strict):
    """Of methods that try multiples of a scale: alpha + i (beta - alpha) / n for i = 0 to n."""

    alpha: Annotated[float, Field(gt=0)] = 0.5
    """The least multiple of the scale that the recipe's observer found."""
    beta: Annotated[float, Field(gt=0)] = 1.2
    """The greatest multiple."""
    n: Annotated[int, Field(ge=1)] = 100
    """Steps between them: n + 1 multiples are tried, and the scale itself."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """How often weights and inputs take turns at most; 0: nothing is searched."""

    @model_validator(mode="after")
    def _in_order(self) -> GridSettings:
        if self.beta <= self.alpha:
            raise ValueError(f"beta {self.beta} must be above alpha {self.alpha}")
        return self


class MadeImagesSettings(Strict):
    """Of methods that make images to calibrate on: how many, and by what they are judged."""

    images: Positive = 32
    """How many calibrate."""
    entropy: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the entropy of patch similarity."""
    variation: Annotated[float, Field(ge=0)] = 0.05
    """Weight of total variation."""
    bandwidth: Annotated[float, Field(gt=0)] = 0.01
    """Of the kernels of the density, as a difference of cosines."""
    points: Annotated[int, Field(ge=2)] = 10
    """At which the density is taken."""
    input_range: Literal["seen", "pixels"] = "seen"
    """`pixels`: what reads the image is quantized from black to white, whatever made images reach."""


class Stage(IntEnum):
    """When `after` of a method runs: each stage builds on what those before it decided."""

    SCALES = 0
    """Scales of weights and activations are searched."""
    POWERS = 1
    """Scales become numbers that hardware likes."""
    OPERATORS = 2
    """Operators compute in another way, which depends on scales."""
    WEIGHTS = 3
    """Weights are rounded to scales that are known."""
    SHIFTS = 4
    """What constant shifts make of the weights' rounding leaves the biases."""
    BIASES = 5
    """Biases are corrected for all errors that there are."""


# What one method of a recipe decides, and no second one may.
SOFTMAX_KIND = "the quantizer of softmax's output"
GELU_KIND = "the quantizer of GELU's output"
INPUT_SCALES = "the scales of what products read"
WEIGHT_SCALES = "the scales of weights"
LAST_SCALES = "the scales in the end"
ROUNDING = "the rounding of weights"
BITS = "the bits of weights"


class Method:
    """One published method; a module of this package defines a subclass and names it `METHOD`.

    A method edits the model that it is given and never its reference: every figure of floating point,
    and every agreement and SQNR, is measured against that.

    Attributes:
        Settings: the keys that a recipe may give beside `name`, with their defaults; others are refused.
        stage: when `after` runs; methods of one stage run in the order of the recipe.
    """

    Settings: ClassVar[type[Strict]] = NoSettings
    stage: ClassVar[Stage] = Stage.SCALES

    def __init__(self, settings: Strict) -> None:
        self.settings = settings

    def decides(self) -> Mapping[str, str]:
        """What the method decides alone, such as `ROUNDING`, and the setting that leaves it to another."""
        return {}

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Before calibration: add rules to the recipe, fix quantizers, rewrite the graph.

        A rewrite leaves the output of the graph in floating point equal.
        """

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """With every quantizer known: change weights and biases, or quantizers."""

    def finish(self, model: QuantizedModel, tools: Tools) -> None:
        """After `after` of all methods: what must fit the quantizers as they are in the end."""


def refuse_floating_weights(name: str, model: QuantizedModel, tools: Tools) -> None:
    """Raise `UserError` where the recipe quantizes no weight of a linear layer."""
    if not tools.weighted_layers(model):
        raise UserError(f"{name}: the recipe quantizes no weight of a linear layer; leave the method out")


class Reconstruction(Method):
    """A method that trains the rounding of weights, and scales of activations, block by block.

    Attributes:
        name: as recipes have it, for messages.
    """

    name: ClassVar[str]
    settings: ReconstructionSettings
    stage = Stage.WEIGHTS

    def decides(self) -> dict[str, str]:
        """How weights are rounded, and the scales of activations that it trains."""
        on = self.settings
        found = {ROUNDING: "iterations: 0"} if on.steps else {}
        return found | ({LAST_SCALES: "scale_rate: 0"} if on.steps and on.scale_rate != 0 else {})

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Refuse a recipe that quantizes no weight of a linear layer."""
        refuse_floating_weights(self.name, model, tools)

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Block by block in graph order, everything before it as quantized, or mixed as the settings say."""
        from ptq2themoon.quantize.learning.losses import block_loss
        from ptq2themoon.quantize.learning.reconstruct import Learning, reconstruct

        on = self.settings
        learning = Learning(on, lambda unit: block_loss(on.loss, unit, on.steps), **on.schedule())
        reconstruct(model, tools, learning)


def refuse_fixed(
    name: str, tools: Tools, operators: Collection[str], why: str, instead: str | None = None
) -> None:
    """Raise `UserError` where a method before this one has fixed the quantizer of an operator's input.

    Args:
        name: of the method that asks.
        why: it cannot come after that one.
        instead: what to do; by default, to name it before that one.
    """
    fixed = {slot.operator: method for slot, method in tools.fixed_by.items() if slot[1:] == ("input", 0)}
    for operator in sorted(fixed.keys() & set(operators)):
        raise UserError(
            f"{name}: {fixed[operator]} has chosen the quantizer of the input of {operator!r}, {why}; "
            f"{instead or f'name {name} before it'}"
        )


def refuse_widened(name: str, tools: Tools) -> None:
    """Raise `UserError` where outlier channel splitting came first: a Gather hides LayerNorms from layers."""
    if "ocs" in tools.prepared:
        raise UserError(
            f"{name}: ocs has duplicated channels that {name} would scale; name {name} before ocs"
        )


def refuse_trained(name: str, tools: Tools) -> None:
    """Raise `UserError` where MLPs were trained first: a rewrite of their layers has no equal before that."""
    if "relu_mlp" in tools.prepared:
        raise UserError(
            f"{name}: relu_mlp has trained layers that {name} would rewrite; name {name} before it"
        )
