"""The stage from a recipe to quantization parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Output, Setting
from ptq2themoon.vocabulary.stages.common import OnDevice, OnModel, RecipeFile, methods_of, recipe_parameters


class Calibrate(OnModel, OnDevice):
    """Quantize a fused model by a recipe: calibrate its observers and run its methods."""

    stage: ClassVar[str] = "calibrate"
    where: ClassVar[str] = f"{{model}}/{{recipe}}/{layout.KEY}"

    images: Annotated[Path, Input(layout.CALIBRATION)]
    """Calibration images."""
    recipe: RecipeFile
    """A file of recipes/."""
    bits: Annotated[str, Setting("{bits}")]
    """Bits of weights and activations, such as w8a8."""
    batch_size: Annotated[int, Setting("calibration.batch_size")]
    """Images in a batch."""
    seed: Annotated[int, Setting("{seed}", recorded=False)] = 0
    """Seed of methods."""
    out: Annotated[Path, Output(layout.QPARAMS_OF_KEY[0])]
    """qparams.json."""
    out_arrays: Annotated[Path, Output(layout.QPARAMS_OF_KEY[1])]
    """qparams.safetensors."""

    def parameters(self) -> dict[str, Any]:
        return {**recipe_parameters(self.recipe), **super().parameters()}

    def methods_called(self) -> tuple[str, ...]:
        return methods_of([self.recipe])
