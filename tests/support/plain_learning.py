"""AdaRound and QDrop written from the papers in plain torch, for the layers and blocks of a tiny ViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_methods import Case
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import Slot


def read_by(case: Case, model: QuantizedModel | None, operator: str) -> Tensor:
    """What an operator is given for all images, before it is quantized; None: in floating point.

    It is what its maker gives: the operator's own hook would see it quantized.
    """
    simulation = SimulatedModel(case.reference, "cpu") if model is None else simulated(model, "cpu")
    name = simulation.tensor_name(Slot(operator, "input", 0))
    (maker,) = (o.name for o in simulation.order if name in [v.name for v in o.outputs])
    seen: list[Tensor] = []
    simulation(case.images, {maker: lambda _, __, outputs: seen.append(outputs[0].clone())})
    return seen[0]


def rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class Rounding:
    """h(V) of a weight [out, in] of torch with a scale for each output channel."""

    def __init__(self, weight: Tensor, quantizer: Uniform) -> None:
        shape = [-1] + [1] * (weight.ndim - 1)
        self.scale, self.low, self.high = (
            each.reshape(shape) for each in (quantizer.scale, quantizer.lowest, quantizer.highest)
        )
        self.floor = torch.floor(weight / self.scale)
        rest = weight / self.scale - self.floor
        self.v = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()

    def h(self) -> Tensor:
        return torch.clamp(1.2 * torch.sigmoid(self.v) - 0.1, 0, 1)

    def weight(self) -> Tensor:
        return torch.clamp(self.floor + self.h(), self.low, self.high) * self.scale

    def penalty(self, beta: float) -> Tensor:
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()


def exponent(step: int, steps: int) -> float | None:
    """Beta from 20 to 2 after a fifth of the steps; None before."""
    if step < 0.2 * steps:
        return None
    return 2 + 18 * (1 - (step - 0.2 * steps) / (0.8 * steps))


def losses(
    loss: Callable[[Tensor], Tensor],
    roundings: Sequence[Rounding],
    rates: Sequence[tuple[Sequence[Tensor], float]],
    generator: torch.Generator,
    images: int,
    batch: int,
    steps: int,
) -> list[float]:
    """Of each step of Adam; the second and later groups' rates fall along half a cosine."""
    optimizer = torch.optim.Adam([{"params": list(p), "lr": rate} for p, rate in rates])
    found = []
    for step in range(steps):
        index = torch.randperm(images, generator=generator)[:batch]
        for group, (_, rate) in list(zip(optimizer.param_groups, rates, strict=True))[1:]:
            group["lr"] = rate * 0.5 * float(1 + torch.cos(torch.tensor(torch.pi * step / steps)))
        optimizer.zero_grad()
        error = loss(index)
        beta = exponent(step, steps)
        total = error if beta is None else error + 0.01 * sum(r.penalty(beta) for r in roundings)
        total.backward()
        optimizer.step()
        found.append(float(error.detach()))
    return found


class PlainBlock:
    """A block of timm's ViT in the papers' protocol, with soft weights and quantization dropped at random."""

    def __init__(
        self, block: Any, name: str, model: QuantizedModel, drop: float, generator: torch.Generator
    ) -> None:
        self.block, self.name, self.drop, self.generator = block, name, drop, generator
        self.quantizers: dict[Slot, Any] = {s: t.ready() for s, t in model.slots()}
        layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        self.layers: dict[str, Any] = layers
        self.soft = {
            role: Rounding(layer.weight.detach(), self.quantizers[Slot(f"{name}.{role}", "weight", 1)])
            for role, layer in layers.items()
        }
        self.scales = {
            slot: quantizer.scale.clone().requires_grad_()
            for slot, quantizer in self.quantizers.items()
            if slot.operator.startswith(f"{name}.") and slot.operand == "input"
        }

    def dropped(self, role: str, position: int, x: Tensor) -> Tensor:
        slot = Slot(f"{self.name}.{role}", "input", position)
        quantizer, scale = self.quantizers[slot], self.scales[slot]
        steps = rounded(x / scale)
        steps = torch.where(steps < quantizer.lowest, quantizer.lowest, steps)
        found = torch.where(steps > quantizer.highest, quantizer.highest, steps) * scale
        if not self.drop:
            return found
        kept = torch.rand(x.shape, generator=self.generator) < self.drop
        return torch.where(kept, x, found)

    def linear(self, role: str, x: Tensor) -> Tensor:
        return F.linear(self.dropped(role, 0, x), self.soft[role].weight(), self.layers[role].bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        block, heads = self.block, self.block.attn.num_heads
        images, tokens, width = x.shape
        qkv = self.linear("qkv", block.norm1(x))
        q, k, v = qkv.reshape(images, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        q = self.dropped("attn_scores", 0, q * block.attn.scale)
        k = self.dropped("attn_scores", 1, k.transpose(-2, -1))
        attention = self.dropped("attn_context", 0, (q @ k).softmax(-1))
        context = attention @ self.dropped("attn_context", 1, v)
        x = x + self.linear("proj", context.transpose(1, 2).flatten(2))
        return x + self.linear("fc2", F.gelu(self.linear("fc1", block.norm2(x))))
