"""What a method is: settings that a recipe can give, and what it does before and after calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from ptq2themoon.vocabulary.validation import Strict

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


class Method:
    """One published method; a module of this package defines a subclass and names it `METHOD`.

    A method edits the model that it is given and never its reference: every figure of floating point,
    and every agreement and SQNR, is measured against that.

    Attributes:
        Settings: the keys that a recipe may give beside `name`, with their defaults; others are refused.
    """

    Settings: ClassVar[type[Strict]] = NoSettings

    def __init__(self, settings: Strict) -> None:
        self.settings = settings

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Before calibration: add rules to the recipe, fix quantizers, rewrite the graph.

        A rewrite leaves the output of the graph in floating point equal.
        """

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """With every quantizer known: change weights and biases, or quantizers."""

    def finish(self, model: QuantizedModel, tools: Tools) -> None:
        """After `after` of all methods: what must fit the quantizers as they are in the end."""
