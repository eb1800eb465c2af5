"""BRECQ: the losses of a loop written from the paper, and gradients that are no rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_learning import PlainBlock, losses, read_by
from tiny_methods import Case, recipe
from tiny_models import tiny_module
from torch import Tensor

from ptq2themoon.quantize.learning import losses as block_losses
from ptq2themoon.quantize.learning.units import Unit

STEPS = 20


def brecq(**settings: Any) -> Any:
    plain = {"name": "brecq", "iterations": STEPS, "rate": 1e-3, "scale_rate": 4e-5}
    return recipe("brecq", methods=[{**plain, **settings}])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(tiny_module(), (1, 16, 16))


def test_a_block_has_the_losses_of_the_paper_s_loop(case: Case, seen: dict[str, list[float]]) -> None:
    """Squared gradients of the KL, which plain torch computes through the module's own blocks."""
    model, base = case.quantized(brecq(), (4, 4)), case.quantized(recipe("papers"), (4, 4))
    module: Any = tiny_module()
    generator = torch.Generator().manual_seed(2)
    plain = PlainBlock(module.blocks[0], "blocks.0", base, 0.0, generator)
    quantized, exact = (read_by(case, each, "blocks.0.norm1") for each in (model, None))

    def logits(x: Tensor) -> Tensor:
        found: Tensor = module.head(module.norm(module.blocks[1](x))[:, 0])
        return found

    with torch.no_grad():
        wanted = module.blocks[0](exact)
        target = logits(wanted).softmax(-1)
        # As calibrated: weights rounded to the nearest code.
        z = nearest(plain)(exact)
    z.requires_grad_()
    kl = (target * (target.log() - logits(z).log_softmax(-1))).sum()
    weights = torch.autograd.grad(kl, z)[0].square()
    assert weights.max() > 0
    first = None

    def loss(index: Tensor) -> Tensor:
        nonlocal first
        error = (weights[index] * (plain(quantized[index]) - wanted[index]).square()).mean()
        first = float(error.detach()) if first is None else first
        return 2 * error / first

    rates = [([r.v for r in plain.soft.values()], 1e-3), (list(plain.scales.values()), 4e-5)]
    found = losses(loss, list(plain.soft.values()), rates, generator, len(case.images), 16, STEPS)
    assert seen["block 0"] == pytest.approx(found, rel=5e-3)


class nearest:
    """A plain block whose weights are rounded to the nearest code."""

    def __init__(self, block: PlainBlock) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        kept = {role: soft.v for role, soft in self.block.soft.items()}
        for role, soft in self.block.soft.items():
            steps = self.block.layers[role].weight.detach() / soft.scale
            soft.v = torch.where(steps.round() > soft.floor, 100.0, -100.0)
        with torch.no_grad():
            found = self.block(x)
        for role, v in kept.items():
            self.block.soft[role].v = v
        return found


def test_gradients_of_the_loss_are_no_rounding(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of floating point with itself are: the block as calibrated leads to other logits."""
    sizes: dict[str, list[float]] = {}
    plain = block_losses.brecq_weights

    def noted(unit: Unit) -> block_losses.Weights:
        index = slice(0, unit.images)
        with torch.no_grad():
            quantized = unit.segment(unit.inputs(index, quantized=False))
        for found in (quantized, unit.wanted(index)):
            gradient = block_losses.gradients(unit, found, index, 1.0)
            sizes.setdefault(unit.name, []).append(max(float(g.abs().max()) for g in gradient.values()))
        return plain(unit)

    monkeypatch.setattr(block_losses, "brecq_weights", noted)
    case.quantized(brecq(iterations=1), (4, 4))
    assert list(sizes) == ["before the blocks", "block 0", "block 1", "after the blocks"]
    for name, (real, itself) in sizes.items():
        assert real > 1e3 * itself, name
