"""Images made from a model: gradient descent on the input, which no real image starts or guides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptq2themoon.progress import progress
from ptq2themoon.quantize.image_loss import Loss
from ptq2themoon.quantize.learning.loop import kept_of, put_back
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.vocabulary.model_info import PreprocessingInfo

ROUNDS = (15 / 224, 30 / 224)  # the farthest that images are moved, as a share of their side
BETAS = (0.5, 0.9)  # of Adam
WARM_UP = 0.2  # share of a round
SAVE_EVERY = 20  # steps


def pixel_range(preprocessing: PreprocessingInfo) -> tuple[Tensor, Tensor]:
    """What black and white are after preprocessing, each [1, C, 1, 1]."""
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return -mean / std, (1 - mean) / std


class Kept(NamedTuple):
    """Where a descent saves itself, and under which name."""

    state: State
    name: str


def descend(
    loss: Loss,
    start: Tensor,
    iterations: int,
    learning_rate: float,
    pixels: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
    kept: Kept | None = None,
) -> Tensor:
    """Images that start at `start` and go down the loss, [B, C, H, W], on the CPU.

    Two rounds of Adam, each with a warm-up and half a cosine of the rate. In each step all images are moved
    by a drawn number of pixels, what leaves at one side coming in at the other, and mirrored by a coin.

    Args:
        iterations: of both rounds together.
        pixels: darkest and lightest value that an image may have; None: any.
        generator: of the moves.
        kept: where a killed run goes on, to the same images as one that was not; None: from the start.
    """
    device = loss.floating.device
    images = start.clone().to(device)
    bounds = None if pixels is None else [each.to(device) for each in pixels]
    optimizer = torch.optim.Adam([images], lr=learning_rate, betas=BETAS)
    plan = [
        (reach, rate)
        for number, reach in enumerate(ROUNDS)
        for rate in _rates((iterations + 1 - number) // 2)
    ]
    done = _restored(kept, optimizer, generator)
    steps = progress(plan[done:], len(plan), "making images", done=done, note=lambda: str(loss))
    for number, (reach, rate) in enumerate(steps, start=done + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate
        shift, mirrored = _move(start.shape[-2:], reach, generator)
        _, gradient = loss(_moved(images, shift, mirrored))
        images.grad = _moved_back(gradient, shift, mirrored)
        optimizer.step()
        if bounds is not None:
            images.clamp_(*bounds)
        if kept and (number % SAVE_EVERY == 0 or number == len(plan)):
            kept.state.save(kept.name, kept_of(optimizer, generator), {"done": number})
    return images.cpu()


def _restored(kept: Kept | None, optimizer: torch.optim.Adam, generator: torch.Generator) -> int:
    """Put back what was saved, and say after how many steps."""
    found = kept.state.load(kept.name) if kept else None
    if found is None:
        return 0
    tensors, facts = found
    put_back(tensors, optimizer, generator)
    return int(facts["done"])


def _rates(steps: int) -> list[float]:
    """Shares of the learning rate in one round."""
    warm = math.ceil(WARM_UP * steps)
    rising = [(step + 1) / warm for step in range(warm)]
    falling = [(1 + math.cos(math.pi * step / (steps - warm))) / 2 for step in range(steps - warm)]
    return rising + falling


def _move(size: Sequence[int], reach: float, generator: torch.Generator) -> tuple[tuple[int, int], bool]:
    """Pixels down and across, at most `reach` of each side, and whether images are mirrored."""
    drawn = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    furthest = [round(reach * side) for side in size]
    down, across = (
        math.floor(share * (2 * far + 1)) - far for share, far in zip(drawn, furthest, strict=False)
    )
    return (down, across), drawn[2] < 0.5


def _moved(images: Tensor, shift: tuple[int, int], mirrored: bool) -> Tensor:
    rolled = images.roll(shift, (-2, -1))
    return rolled.flip(-1) if mirrored else rolled


def _moved_back(images: Tensor, shift: tuple[int, int], mirrored: bool) -> Tensor:
    straight = images.flip(-1) if mirrored else images
    return straight.roll((-shift[0], -shift[1]), (-2, -1))
