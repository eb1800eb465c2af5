"""Tiny fused models of several families, quantized in memory with a recipe and a few words on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from families import FAMILIES, image_shape
from tiny_models import random_images, to_onnx
from torch import Tensor, nn

from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipe_language import MethodCall, Rule
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe
from ptq2themoon.vocabulary.validation import validate

RECIPES = Path(__file__).parents[2] / "recipes"
FLOATING_WEIGHTS: dict[str, Any] = {"select": {"operand": "weight"}, "quantize": False}


@dataclass(frozen=True)
class Case:
    """A fused model with images [24, C, H, W] that calibrate it, in batches of eight."""

    reference: onnx.ModelProto
    operators: list[Operator]
    images: Tensor

    @classmethod
    def of(cls, module: nn.Module, shape: tuple[int, ...]) -> Case:
        fused, _ = fuse(normalise(to_onnx(module, (1, *shape))))
        operators, _ = rename_operators(fused, find_roles(fused))
        return cls(fused, operators, torch.from_numpy(random_images(24, *shape)))

    @classmethod
    def of_family(cls, name: str) -> Case:
        return cls.of(FAMILIES[name](), image_shape(name))

    def quantized(self, recipe: Recipe, bits: tuple[int, int] = (8, 8)) -> QuantizedModel:
        return quantize(self.reference, self.operators, recipe, bits, self.images.split(8), "cpu")

    def floating(self) -> Tensor:
        """Logits of the reference."""
        return SimulatedModel(self.reference, "cpu")(self.images)

    def sqnr(self, recipe: Recipe, bits: tuple[int, int] = (8, 8)) -> float:
        """Of the logits, in dB."""
        return sqnr(self.logits(self.quantized(recipe, bits)), self.floating())

    def logits(self, model: QuantizedModel) -> Tensor:
        return simulated(model, "cpu")(self.images)


class Unread:
    """Calibration images that nobody may look at."""

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("a calibration image was read")


def recipe(
    base: str, *rules: Mapping[str, Any], methods: Sequence[Mapping[str, Any]] | None = None
) -> Recipe:
    """A recipe of the repository with more rules, and other methods where they are given."""
    found = load_recipe(RECIPES / f"{base}.yaml")
    for rule in rules:
        found = found.with_rule(validate(Rule, rule, "test"))
    if methods is not None:
        found = replace(found, methods=[validate(MethodCall, call, "test") for call in methods])
    return found


def repq(*rules: Mapping[str, Any], **settings: Any) -> Recipe:
    """`repq_vit` with these settings of the method."""
    return recipe("repq_vit", *rules, methods=[{"name": "repq_vit", **settings}])


def sqnr(found: Tensor, wanted: Tensor) -> float:
    """In dB; higher is better."""
    noise = (found - wanted).double().square().sum()
    return float(10 * torch.log10(wanted.double().square().sum() / noise))
