"""What a row of the leaderboard says of integer kernels is what the fast INT8 model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_methods import Case, recipe, repq

from ptq2themoon.deploy import kernels as module
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.deploy.kernels import ALL, COLUMNS, NONE, SOME, kernels
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.vocabulary.errors import UserError

SOURCE = Path("fused.onnx")
CONTEXT = "attention times values"


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of_family("vit")


def row(model: QuantizedModel, *methods: str) -> dict[str, Any]:
    found = kernels(model, methods, SOURCE)
    assert set(found) == set(COLUMNS)
    return found


def test_papers_runs_on_integer_kernels_and_says_what_stays(case: Case) -> None:
    model = case.quantized(recipe("papers"), (4, 4))
    found = row(model)
    assert (found["runs_on"], found["float_products"], found["why"], found["methods"]) == (ALL, "", "", "")
    assert found["floating"].split("; ") == [
        "position embedding's sum", "LayerNorm", "attention's scaling", "softmax", "residual sums", "GELU",
        "biases",
    ]  # fmt: skip
    made = deploy(model.edited, model.quantized, "fast")
    assert found["integer_share"] == made.products()["integer_share"]
    assert found["weight_bits"] == 4
    assert 4 < found["activation_bits"] < 4.5  # the patch embedding's input has 8


def test_a_kind_that_is_no_integer_leaves_its_product_in_floating_point(case: Case) -> None:
    found = row(case.quantized(repq()), "repq_vit")
    assert (found["runs_on"], found["float_products"], found["methods"]) == (SOME, CONTEXT, "repq_vit")
    assert "log_sqrt2" in found["why"]
    assert found["integer_share"] < row(case.quantized(repq(log_sqrt2=False)))["integer_share"]


def test_all_operators_quantized_leave_less(case: Case) -> None:
    assert row(case.quantized(recipe("vanilla")))["floating"] == ""


def test_mean_bits_count_each_weight(case: Case) -> None:
    model = case.quantized(
        recipe("papers", {"select": {"role": "fc1", "operand": "weight"}, "bits": 2}), (8, 8)
    )
    assert 2 < row(model)["weight_bits"] < 8


def test_without_integer_products_it_is_simulation_only(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = recipe("papers", {"select": {"operand": "input"}, "bits": 16})
    assert row(case.quantized(wide))["runs_on"] == NONE

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("no INT8 model of this")

    monkeypatch.setattr(module, "deploy", refuse)
    found = row(case.quantized(recipe("papers")))
    assert (found["runs_on"], found["integer_share"], found["why"]) == (NONE, 0.0, "no INT8 model of this")
