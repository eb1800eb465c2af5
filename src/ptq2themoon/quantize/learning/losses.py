"""What a unit's output is judged by while it is trained.

All are weighted squared errors of the outputs. The weights say how much the model's own output moves with
each value: by gradients of the KL divergence between logits, everything after the unit in floating point.

- `mse`: all weights 1. The sum over channels, the mean over the rest (BRECQ's and QDrop's code).
- `brecq`: the squared gradient of each value (Li et al. 2021, arXiv 2102.05426, equation 10).
- `aph`: the average perturbation Hessian (APHQ-ViT, arXiv 2504.02508): how far the gradient of each value
  moves when the output moves a little, over all images; see `perturbation_weights`.
- `fima`: a diagonal and low-rank Fisher (FIMA-Q, arXiv 2506.11543): see `Fisher`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ptq2themoon.quantize.learning.store import Store
from ptq2themoon.quantize.learning.units import Unit

LossName = Literal["mse", "brecq", "aph", "fima"]
TEMPERATURE = 20.0  # of logits for `aph` and `fima`, as in the papers
PROBES = 4  # directions that `aph` looks into
RANK = 5  # how often `fima` looks, k in the paper
TINY = 1e-12


# From indices of images to the weights of their squared errors, by output, as [images, indices of each, ...].
Weights = Callable[[Tensor], Mapping[str, Tensor]]


class BlockLoss(Protocol):
    """The loss of one unit's outputs; made anew for each unit."""

    def __call__(self, iteration: int, found: dict[str, Tensor], index: Tensor) -> Tensor:
        """0-d: how far the outputs of these images are from those in floating point."""

    def extra(self) -> dict[str, Tensor]:
        """Tensors of its own that change while it trains."""


def block_loss(name: LossName, unit: Unit, steps: int) -> BlockLoss:
    """The loss of a unit that is to be trained for `steps` iterations."""
    if name == "mse":
        return Squared(unit)
    if name == "fima":
        return Fisher(unit, steps)
    return Weighted(unit, (brecq_weights if name == "brecq" else perturbation_weights)(unit))


class Squared:
    """The squared error, summed over the last axis, mean over the rest."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __call__(self, iteration: int, found: dict[str, Tensor], index: Tensor) -> Tensor:
        off = self._unit.off(found, index).values()
        return torch.stack([each.square().sum(-1).mean() for each in off]).sum()

    def extra(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


class Weighted:
    """Twice the squared errors times weights that stay, over their mean in the first batch: APHQ-ViT's."""

    def __init__(self, unit: Unit, weights: Weights) -> None:
        self._unit, self._weights = unit, weights
        self._first = torch.zeros(())

    def __call__(self, iteration: int, found: dict[str, Tensor], index: Tensor) -> Tensor:
        weights = self._weights(index)
        errors = [(weights[k] * e.square()).mean() for k, e in self._unit.off(found, index).items()]
        error = torch.stack(errors).sum()
        if not self._first:
            self._first.fill_(float(error.detach().clamp(min=TINY)))
        return 2 * error / self._first.to(error.device)

    def extra(self) -> dict[str, Tensor]:
        """The first batch's error."""
        return {"first": self._first}


def kl(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL(softmax(wanted / T) || softmax(found / T)) of logits [B, classes], summed over images."""
    log_p, log_q = (torch.log_softmax(each / temperature, -1) for each in (wanted, found))
    return (log_p.exp() * (log_p - log_q)).sum()


def gradients(unit: Unit, found: dict[str, Tensor], index: slice, temperature: float) -> dict[str, Tensor]:
    """Of the KL of the logits that these outputs lead to, for each value of them."""
    values = {name: found[name].detach().requires_grad_() for name in unit.outputs}
    wanted = unit.wanted(index)
    with torch.no_grad():
        others = {name: found[name] for name in unit.others}
        exact = unit.to_logits(others | wanted, index)
    loss = kl(unit.to_logits(others | values, index), exact, temperature)
    got = torch.autograd.grad(loss, list(values.values()))
    return dict(zip(values, got, strict=True))


def _outputs(unit: Unit, index: slice) -> dict[str, Tensor]:
    """As quantized now, from inputs in floating point."""
    with torch.no_grad():
        return unit.segment(unit.inputs(index, quantized=False))


def brecq_weights(unit: Unit) -> Weights:
    """Squared gradients of each image's values, at the outputs as quantized before training."""
    store = Store(unit.images, {name: unit.floating.per_image[name] for name in unit.outputs}, unit.memory)
    for index in unit.chunks():
        of_chunk = gradients(unit, _outputs(unit, index), index, 1.0)
        store.put(index.start, {name: gradient.square() for name, gradient in of_chunk.items()})
    return lambda index: unit.by_image(store.get(unit.outputs, index, unit.device))


def perturbation_weights(unit: Unit) -> Weights:
    """How far each gradient moves when the outputs move by a small step: equal for all images.

    That is |H v| for the Hessian H and the direction v of the step, summed over images. The paper moves all
    values by the same 1e-6. Such a step LayerNorm takes out again wherever the residual stream of a ViT is
    read: H v is 0, and what float32 leaves of it is its rounding. So v has random signs here, in `PROBES`
    directions, and H v is computed as such, by a second derivative, not from two gradients.
    """
    sums: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value[0].shape for name, value in unit.by_image(unit.wanted(slice(0, 1))).items()}
    probes = [
        {name: signs(shape, generator).to(unit.device) for name, shape in shapes.items()}
        for _ in range(PROBES)
    ]
    for index in unit.chunks():
        others = {name: value for name, value in _exact(unit, index).items() if name in unit.others}
        values = {name: value.requires_grad_() for name, value in unit.wanted(index).items()}
        logits = unit.to_logits(others | values, index)
        loss = kl(logits, logits.detach(), TEMPERATURE)
        first = torch.autograd.grad(loss, list(values.values()), create_graph=True)
        slopes = unit.by_image(dict(zip(values, first, strict=True)))
        for probe in probes:
            along = torch.stack([(slopes[name] * probe[name]).sum() for name in probe]).sum()
            moved = torch.autograd.grad(along, list(values.values()), retain_graph=True)
            for name, value in unit.by_image(dict(zip(values, moved, strict=True))).items():
                sums[name] = sums.get(name, 0) + value.abs().sum(0)
    return lambda _: sums


def signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Each 1 or -1."""
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def _exact(unit: Unit, index: slice) -> dict[str, Tensor]:
    with torch.no_grad():
        return unit.exact(unit.floating.get(unit.exact.program.read, index, unit.device))


class Fisher:
    """FIMA-Q's loss: with e = |found - wanted| of an image as a vector,

    mean[(e G^T) (D D^T)^-1 (G e)] + mean[e^2 mean_i g_i], each over its value when it was last renewed,

    row i of G [k, values] and D [k, values] being mean |gradient| and mean |found - wanted| over images, seen
    at iterations 0, T/k, 2T/k ...: the low-rank and the diagonal part of a Fisher linear in the gradient.
    """

    def __init__(self, unit: Unit, steps: int) -> None:
        self._unit, self._every = unit, max(1, steps // RANK)
        self._seen = torch.zeros((), dtype=torch.int64)
        self._first = {name: torch.zeros(2) for name in unit.outputs}
        shapes = {name: value.numel() for name, value in unit.wanted(slice(0, 1)).items()}
        self._g = {name: torch.zeros(RANK, size) for name, size in shapes.items()}
        self._d = {name: torch.zeros(RANK, size) for name, size in shapes.items()}

    def __call__(self, iteration: int, found: dict[str, Tensor], index: Tensor) -> Tensor:
        if iteration % self._every == 0 and int(self._seen) < RANK:
            self._look()
        off = self._unit.off(found, index)
        return torch.stack([self._of(name, each) for name, each in off.items()]).sum()

    def _look(self) -> None:
        unit, row = self._unit, int(self._seen)
        for index in unit.chunks():
            found = _outputs(unit, index)
            slopes = unit.by_image(gradients(unit, found, index, TEMPERATURE))
            for name, off in unit.off(found, index).items():
                self._g[name][row] += slopes[name].abs().flatten(1).sum(0).cpu() / unit.images
                self._d[name][row] += off.abs().flatten(1).sum(0).cpu() / unit.images
        for first in self._first.values():
            first.zero_()
        self._seen += 1

    def _of(self, name: str, off: Tensor) -> Tensor:
        seen = int(self._seen)
        g, d = (each[name][:seen].to(off.device) for each in (self._g, self._d))
        e = off.abs().flatten(1)
        gram = d @ d.T
        gram = gram + 1e-6 * gram.diagonal().mean().clamp(min=TINY) * torch.eye(seen, device=off.device)
        ge = e @ g.T
        low = (ge @ torch.linalg.inv(gram) * ge).sum(1).mean()
        parts = torch.stack([low, (e.square() * g.mean(0)).mean()])
        if not bool(self._first[name].any()):
            self._first[name].copy_(parts.detach().abs().clamp(min=TINY).cpu())
        return (parts / self._first[name].to(off.device)).sum()

    def extra(self) -> dict[str, Tensor]:
        """What was seen so far."""
        found = {"seen": self._seen}
        for key, own in (("g", self._g), ("d", self._d), ("first", self._first)):
            found |= {f"{key}.{name}": value for name, value in own.items()}
        return found


class LocalAndTotal:
    """GLF-Q's loss: the mean squared error of the outputs, and of the feature that the classifier reads.

    Each is over its value in the first batch; `local` weighs the first. The last unit has only the first.
    """

    def __init__(self, unit: Unit, local: float, *, total: bool) -> None:
        self._unit, self._local, self._total = unit, local, total and bool(unit.rest)
        self._first = torch.zeros(2)
        self._features = _features(unit) if self._total else torch.zeros(0)

    def __call__(self, iteration: int, found: dict[str, Tensor], index: Tensor) -> Tensor:
        off = self._unit.off(found, index).values()
        parts = [torch.stack([each.square().mean() for each in off]).sum()]
        if self._total:
            wanted = self._features[index].to(parts[0].device)
            parts.append((self._unit.to_feature(found, index) - wanted).square().mean())
        if not bool(self._first.any()):
            self._first[: len(parts)] = torch.stack(parts).detach().cpu().clamp(min=TINY)
        shares = [part / first.to(part.device) for part, first in zip(parts, self._first, strict=False)]
        return self._local * shares[0] + shares[1] if self._total else shares[0]

    def extra(self) -> dict[str, Tensor]:
        """The first batch's errors."""
        return {"first": self._first}


def _features(unit: Unit) -> Tensor:
    """What the classifier reads of each image in floating point, on the CPU."""
    with torch.no_grad():
        return torch.cat([unit.to_feature(_exact(unit, i), i).cpu() for i in unit.chunks()])
