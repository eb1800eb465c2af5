"""A small network that makes images from noise; what trains it is elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

LATENT = 64  # values of noise for an image
SMALLEST = 7  # about the pixels of a side that the first convolution sees, before it is doubled
WIDEST, NARROWEST = 128, 32  # channels of the smallest size and of the largest
SLOPE = 0.2  # of the leaky ReLU below 0


class ImageGenerator:
    """Noise [B, LATENT] to images [B, C, H, W].

    A linear layer, then for each size from the smallest on: pixels doubled, a convolution of 3 x 3, batch
    normalisation and a leaky ReLU; a last convolution and normalisation give the channels. The batch that is
    made is what it is normalised by, so there is no state but `parameters`.

    Args:
        size: channels, height and width.
        pixels: darkest and lightest value, each [1, C, 1, 1], between which a tanh holds images; None: images
            have mean 0 and variance 1 in each channel at first, and any values.
        random: of the first parameters; on the CPU, so that every device draws the same.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        pixels: tuple[Tensor, Tensor] | None,
        device: str,
        random: torch.Generator,
    ) -> None:
        channels, height, width = size
        doublings = max(2, round(math.log2(min(height, width) / SMALLEST)))
        self._sizes = [
            (math.ceil(height / 2**left), math.ceil(width / 2**left)) for left in range(doublings, -1, -1)
        ]
        self._pixels = None if pixels is None else [each.to(device) for each in pixels]
        self._device, self._random = device, random
        wide = [max(NARROWEST, WIDEST >> i) for i in range(len(self._sizes))]
        first, (rows, columns) = wide[0], self._sizes[0]
        self.parameters = [self._drawn(LATENT, first * rows * columns, gain=1.0)]
        for before, after in itertools.pairwise(wide):
            self.parameters += self._convolution(before, after)
        self.parameters += self._convolution(wide[-1], channels)

    def _convolution(self, before: int, after: int) -> list[Tensor]:
        """Its weight, and gain and shift of the normalisation after it."""
        gain, shift = torch.ones(after, device=self._device), torch.zeros(after, device=self._device)
        weight = self._drawn(after, before, 3, 3, gain=2 / (1 + SLOPE**2))
        return [weight, gain.requires_grad_(), shift.requires_grad_()]

    def _drawn(self, *shape: int, gain: float) -> Tensor:
        inputs = math.prod(shape[1:]) if len(shape) > 2 else shape[0]
        value = torch.randn(shape, generator=self._random) * math.sqrt(gain / inputs)
        return value.to(self._device).requires_grad_()

    def noise(self, count: int, random: torch.Generator) -> Tensor:
        """For so many images."""
        return torch.randn((count, LATENT), generator=random).to(self._device)

    def __call__(self, noise: Tensor) -> Tensor:
        """The images that this noise becomes, with gradients of `parameters`."""
        linear, *rest = self.parameters
        x = F.leaky_relu(noise @ linear, SLOPE).reshape(len(noise), -1, *self._sizes[0])
        *inner, last = [rest[i : i + 3] for i in range(0, len(rest), 3)]
        for size, layer in zip(self._sizes[1:], inner, strict=True):
            x = F.leaky_relu(_normalised(F.interpolate(x, size), layer), SLOPE)
        x = _normalised(x, last)
        if self._pixels is None:
            return x
        low, high = self._pixels
        return low + (high - low) * (1 + torch.tanh(x)) / 2

    def images(self, noise: Tensor) -> Tensor:
        """As a call, on the CPU and without gradients."""
        with torch.no_grad():
            return self(noise).cpu()

    def kept(self) -> dict[str, Tensor]:
        """Its parameters by name."""
        return {f"generator.{i}": value.detach() for i, value in enumerate(self.parameters)}

    def put(self, kept: Mapping[str, Tensor]) -> None:
        """Take parameters as `kept` gave them."""
        with torch.no_grad():
            for i, value in enumerate(self.parameters):
                value.copy_(kept[f"generator.{i}"])


def _normalised(x: Tensor, layer: list[Tensor]) -> Tensor:
    """A convolution and the normalisation by its own batch."""
    weight, gain, shift = layer
    return F.batch_norm(F.conv2d(x, weight, padding=1), None, None, gain, shift, training=True)
