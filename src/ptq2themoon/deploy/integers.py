"""Which products can run in integers, in which integers, and why the others cannot."""

from __future__ import annotations

import numpy as np

from ptq2themoon.deploy.deploy_report import Placement
from ptq2themoon.deploy.grid import Grid
from ptq2themoon.deploy.kinds import Forms, Formula
from ptq2themoon.deploy.writer import S8, U8
from ptq2themoon.vocabulary.modes import Profile
from ptq2themoon.vocabulary.recipe_language import Operand

UNQUANTIZED = Placement("float", "the recipe leaves an input in floating point")
WIDE = Placement("float", "more than 8 bits")
NO_ZERO_POINT = Placement("float", "TensorRT has no zero points; symmetric inputs would run in integers")
Operands = tuple[Operand, Operand]


def operands_of(forms: Forms) -> Operands:
    """What inputs 0 and 1 of a product are."""
    return "input", "weight" if ("weight", 1) in forms else "input"


def problem(forms: Forms, operands: Operands, profile: Profile) -> Placement | None:
    """Why inputs 0 and 1 cannot be integers, if so."""
    found = [forms.get((operand, i)) for i, operand in enumerate(operands)]
    formula = not_integer(forms, operands)
    if any(form is None for form in found):
        return UNQUANTIZED
    if formula is not None:
        return Placement("float", formula.why)
    grids = [form for form in found if isinstance(form, Grid)]
    if not all(grid.stored for grid in grids):
        return WIDE
    return NO_ZERO_POINT if profile == "tensorrt" and any(grid.zero_point for grid in grids) else None


def not_integer(forms: Forms, operands: Operands) -> Formula | None:
    """The first of inputs 0 and 1 that no integer of one scale expresses."""
    found = (forms.get((operand, i)) for i, operand in enumerate(operands))
    return next((form for form in found if isinstance(form, Formula)), None)


def grid_at(forms: Forms, operand: Operand, position: int) -> Grid:
    """That of a tensor in which `problem` found none."""
    form = forms[operand, position]
    assert isinstance(form, Grid)
    return form


def integer_type(grid: Grid, profile: Profile) -> np.dtype:
    """Of an activation before a product: uint8 where it has a zero point, for softmax's output is then 0.

    OpenVINO runs an attention in integers of that form alone; elsewhere, and in ONNX Runtime, uint8 and int8
    are equally fast, with a zero point or without.
    """
    return U8 if grid.zero_point and profile == "onnxruntime" else S8


def unit_of_scales(*grids: Grid) -> str:
    """What has a scale each in one side or the other of an attention product."""
    return "head" if all(grid.axis in (None, 1) for grid in grids) else "channel"
