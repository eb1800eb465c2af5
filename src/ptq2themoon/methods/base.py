"""What a method is: settings that a recipe can give, and what it does before and after calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ptq2themoon.vocabulary.validation import Strict

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools


class NoSettings(Strict):
    """Of a method that has none."""


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
