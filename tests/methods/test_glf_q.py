"""GLF-Q's training: its two errors from the definition, what moves, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_methods import Case, recipe, sqnr
from tiny_models import tiny_module
from torch import Tensor

from ptq2themoon.quantize.learning import losses as block_losses
from ptq2themoon.quantize.learning.units import Unit
from ptq2themoon.vocabulary.errors import UserError


def glf(**settings: Any) -> Any:
    return recipe("papers", methods=[{"name": "glf_q", "iterations": 20, **settings}])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


def test_both_errors_are_those_of_the_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = tiny_module()
    checked = []

    class Checked(block_losses.LocalAndTotal):
        def __init__(self, unit: Unit, local: float, *, total: bool) -> None:
            super().__init__(unit, local, total=total)
            if unit.name != "block 0":
                return
            index = torch.arange(6)
            y = unit.wanted(index)[unit.outputs[0]]

            def feature(x: Tensor) -> Tensor:
                found: Tensor = module.norm(module.blocks[1](x))[:, 0]
                return found

            with torch.no_grad():
                small, large = ({unit.outputs[0]: y + step * y.flip(0)} for step in (0.01, 0.03))
                first = float(self(0, small, index))
                found = float(self(1, large, index))
                local = 9.0  # three times as far
                exact = feature(y)
                off = [(feature(each[unit.outputs[0]]) - exact).square().mean() for each in (small, large)]
            assert first == pytest.approx(1 + 2)
            assert found == pytest.approx(2 * local + float(off[1] / off[0]), rel=1e-3)
            self._first.zero_()
            checked.append(unit.name)

    monkeypatch.setattr(block_losses, "LocalAndTotal", Checked)
    case.quantized(glf(iterations=1), (4, 4))
    assert checked == ["block 0"]


def test_weights_biases_and_all_scales_move(case: Case) -> None:
    model, base = case.quantized(glf(), (4, 4)), case.quantized(recipe("papers"), (4, 4))
    for (slot, found), (_, plain) in zip(model.slots(), base.slots(), strict=True):
        assert not torch.equal(found.ready().scale, plain.ready().scale), slot
    before = {tensor.name: tensor.raw_data for tensor in base.edited.graph.initializer}
    after = {tensor.name: tensor.raw_data for tensor in model.edited.graph.initializer}
    assert sum(before.get(name) != data for name, data in after.items()) >= 2 * (2 * 4 + 1)


def test_it_brings_the_model_nearer_to_floating_point(case: Case) -> None:
    floating = case.floating()
    found = [
        sqnr(case.logits(case.quantized(one, (3, 3))), floating)
        for one in (recipe("papers"), glf(iterations=60, rate=1e-3))
    ]
    assert found[1] > found[0] + 1


def test_what_leaves_nothing_to_train_is_refused_in_one_line(case: Case) -> None:
    with pytest.raises(UserError, match=r"^glf_q: local: 0 and total: false leave no error"):
        case.quantized(glf(local=0.0, total=False))


def test_the_whole_of_it_goes_together_and_gains(case: Case) -> None:
    """RMSNorm and rotation, ReLU, and training: the recipe's three methods, each with fewer iterations."""
    calls = [
        {"name": call.name, **call.settings, **({} if call.name == "rotation" else {"iterations": 40})}
        for call in recipe("glf_q_rotated").methods
    ]
    assert [call["name"] for call in calls] == ["rotation", "relu_mlp", "glf_q"]
    whole = case.quantized(recipe("papers", methods=calls), (3, 3))
    types = {node.op_type for node in whole.edited.graph.node}
    assert "Relu" in types
    assert not types & {"Gelu", "LayerNormalization"}
    untrained = case.quantized(recipe("papers", methods=calls[:2]), (3, 3))
    wanted = case.floating()
    assert sqnr(case.logits(whole), wanted) > sqnr(case.logits(untrained), wanted) + 1
