"""What operators read, sampled while the calibration images pass: so many pieces, however many images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ptq2themoon.quantize.simulation import SimulatedModel


class Sample:
    """At most `size` pieces of what one operator reads, drawn evenly from all that pass.

    A piece is a row of channels, or a matrix: the last `rank` dimensions. All inputs are sampled alike.
    Each piece gets a random number, and those with the least ones stay.
    """

    def __init__(self, size: int, rank: int, generator: torch.Generator) -> None:
        self.size, self.rank, self.generator = size, rank, generator
        self._numbers = torch.zeros(0, dtype=torch.float64)
        self._kept: list[Tensor] = []

    def add(self, inputs: Iterable[Tensor]) -> None:
        """See the activations of one batch, in the order of the operator's inputs."""
        pieces = [value.reshape(-1, *value.shape[value.ndim - self.rank :]) for value in inputs]
        fresh = torch.rand(len(pieces[0]), generator=self.generator, dtype=torch.float64)
        numbers = torch.cat([self._numbers, fresh])
        chosen = numbers.argsort()[: self.size].sort().values
        old, new = chosen[chosen < len(self._numbers)], chosen[chosen >= len(self._numbers)]
        new = new - len(self._numbers)
        kept = self._kept or [piece[:0].cpu() for piece in pieces]
        self._kept = [
            torch.cat([k[old], p[new.to(p.device)].detach().float().cpu()])
            for k, p in zip(kept, pieces, strict=True)
        ]
        self._numbers = numbers[chosen]

    @property
    def values(self) -> list[Tensor]:
        """Of each input [pieces, ...], float32 on the CPU, in the order in which they passed."""
        return self._kept


def sampled_inputs(
    model: SimulatedModel, batches: Iterable[Tensor], operators: Mapping[str, int], size: int, seed: int
) -> dict[str, list[Tensor]]:
    """What operators read in `model` as it is in force, `size` pieces of each at most.

    Args:
        batches: images [B, C, H, W], normalised; run through the model once.
        operators: how many dimensions a piece has, by operator: 1 for rows of channels, 2 for matrices.
            Of an operator with a constant input only the first input is sampled.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = {name: Sample(size, rank, generator) for name, rank in operators.items()}

    def add(name: str, inputs: list[Tensor], _: list[Tensor]) -> None:
        samples[name].add(inputs[: 2 if operators[name] > 1 else 1])

    for images in batches:
        model(images, dict.fromkeys(samples, add))
    return {name: sample.values for name, sample in samples.items()}
