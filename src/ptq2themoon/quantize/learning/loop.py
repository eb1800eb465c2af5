"""One training: Adam over seeded batches of images, saved as it goes, resumed where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptq2themoon.progress import progress
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.training_settings import TrainingSettings

SAVE_SECONDS = 20.0
GAIN = 1e-3  # of a loss: less is no progress
KEPT = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate.

    Attributes:
        cosine: whether the rate falls to 0 along half a cosine; else it stays.
    """

    parameters: Sequence[Tensor]
    rate: float
    cosine: bool = False


@dataclass(frozen=True)
class Draws:
    """What a training draws, and its files.

    Attributes:
        images: how many there are to draw from.
        generator: of batches, and of what is dropped; on the CPU.
        state: where to save; None: nowhere.
        name: of the file there.
        desc: what progress calls it.
    """

    images: int
    generator: torch.Generator
    state: State | None
    name: str
    desc: str


# The iteration and the indices of its images to what is minimised, and the part of it that is watched.
LossOf = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def train(
    groups: Sequence[Group],
    loss_of: LossOf,
    settings: TrainingSettings,
    draws: Draws,
    *,
    settled: Callable[[], bool] = lambda: True,
    extra: Mapping[str, Tensor] | None = None,
) -> list[float]:
    """Minimise a loss; the parameters are changed in place.

    Args:
        settled: asked before an early end, besides `settings.patience`.
        extra: tensors of the loss's own that are saved with the parameters, changed in place.

    Returns:
        The watched loss of each iteration, those before an interruption too.

    Raises:
        UserError: a loss that is not finite.
    """
    optimizer = torch.optim.Adam([{"params": list(g.parameters), "lr": g.rate} for g in groups])
    losses = _resume(optimizer, draws, extra or {})
    saved = time.monotonic()
    said = progress(
        range(len(losses), settings.steps),
        total=settings.steps,
        desc=draws.desc,
        done=len(losses),
        note=lambda: f"loss {losses[-1]:.4g}" if losses else "",
    )
    for iteration in said:
        index = _batch(draws, settings.batch_size)
        for group, options in zip(groups, optimizer.param_groups, strict=True):
            share = (1 + math.cos(math.pi * iteration / settings.steps)) / 2
            options["lr"] = group.rate * (share if group.cosine else 1)
        optimizer.zero_grad(set_to_none=True)
        total, watched = loss_of(iteration, index)
        if not bool(torch.isfinite(total)):
            raise UserError(f"{draws.desc}: the loss is not finite at iteration {iteration + 1}")
        total.backward()
        optimizer.step()
        losses.append(float(watched.detach()))
        if _at_rest(losses, settings.patience) and settled():
            break
        if draws.state is not None and time.monotonic() - saved >= SAVE_SECONDS:
            _save(optimizer, losses, draws, extra or {})
            saved = time.monotonic()
    return losses


def _batch(draws: Draws, size: int) -> Tensor:
    """Different images, drawn evenly."""
    return torch.randperm(draws.images, generator=draws.generator)[: min(size, draws.images)]


def _at_rest(losses: Sequence[float], patience: int | None) -> bool:
    if patience is None or len(losses) < 2 * patience or len(losses) % patience:
        return False
    before, now = (sum(part) for part in (losses[-2 * patience : -patience], losses[-patience:]))
    return now > (1 - GAIN) * before


def _parameters(optimizer: torch.optim.Adam) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _save(
    optimizer: torch.optim.Adam, losses: Sequence[float], draws: Draws, extra: Mapping[str, Tensor]
) -> None:
    assert draws.state is not None
    tensors = kept_of(optimizer, draws.generator) | {f"extra.{k}": v for k, v in extra.items()}
    draws.state.save(draws.name, tensors, {"losses": list(losses)})


def _resume(optimizer: torch.optim.Adam, draws: Draws, extra: Mapping[str, Tensor]) -> list[float]:
    """Put a saved state in force, and give the losses up to it."""
    found: tuple[dict[str, Tensor], dict[str, Any]] | None = (
        draws.state.load(draws.name) if draws.state is not None else None
    )
    if found is None:
        return []
    tensors, facts = found
    put_back(tensors, optimizer, draws.generator)
    for key, value in extra.items():
        value.copy_(tensors[f"extra.{key}"])
    return list(facts["losses"])


def kept_of(optimizer: torch.optim.Adam, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters, Adam's state of each that has had a step, and the generator's, by name."""
    tensors = {"generator": generator.get_state()}
    for i, parameter in enumerate(_parameters(optimizer)):
        tensors[f"{i}"] = parameter
        if parameter in optimizer.state:
            tensors |= {f"{i}.{key}": optimizer.state[parameter][key] for key in KEPT}
    return tensors


def put_back(tensors: Mapping[str, Tensor], optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
    """Put what `kept_of` gave in force; as Adam has it, the number of steps stays on the CPU."""
    generator.set_state(tensors["generator"])
    with torch.no_grad():
        for i, parameter in enumerate(_parameters(optimizer)):
            parameter.copy_(tensors[f"{i}"])
            if f"{i}.{KEPT[0]}" not in tensors:
                continue
            kept = {key: tensors[f"{i}.{key}"] for key in KEPT}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()
            }
