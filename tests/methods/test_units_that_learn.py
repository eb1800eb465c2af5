"""What all methods that train unit by unit share: the switch that turns them off, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from tiny_methods import FLOATING_WEIGHTS, Case, recipe
from tiny_models import tiny_module

from ptq2themoon.quantize.simulation import simulated
from ptq2themoon.vocabulary.errors import UserError

METHODS = pytest.mark.parametrize("method", ["adaround", "brecq", "glf_q", "qdrop"])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


@METHODS
def test_without_iterations_it_is_its_base_to_the_bit(case: Case, method: str) -> None:
    off = recipe("papers", methods=[{"name": method, "iterations": 0}])
    found, base = (case.quantized(r, (4, 4)) for r in (off, recipe("papers")))
    assert found.edited == base.edited
    assert torch.equal(simulated(found, "cpu")(case.images), simulated(base, "cpu")(case.images))


@METHODS
def test_a_recipe_without_quantized_weights_is_refused_in_one_line(case: Case, method: str) -> None:
    with pytest.raises(UserError, match=rf"^{method}: the recipe quantizes no weight of a linear layer"):
        case.quantized(recipe("papers", FLOATING_WEIGHTS, methods=[{"name": method}]))
