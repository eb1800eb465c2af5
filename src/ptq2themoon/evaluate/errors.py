"""Error of a quantized tensor against its floating-point value: one definition for every table.

All are means over images of a figure of one image, so that partial batches count rightly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = 1e-7  # keeps a ratio to zero signal finite, as PPQ does
FIGURES = ("nsr", "relative_error", "mse", "mae", "cosine")


def per_image(quantized: Tensor, reference: Tensor, images: int | None = None) -> dict[str, Tensor]:
    """Figures of each image, shape [B] and float64, of two tensors of one shape.

    Args:
        images: B, when the tensors need not be [B, ...]: windows of an image may come one after another
            ([B*k, ...]); a tensor in which images cannot be told apart counts as a whole for each of them.

    nsr: noise power over signal power, sum (q-f)^2 / sum f^2; lower is better. This is what PPQ calls SNR.
    relative_error: mean of (q-f)^2 / (f^2 + epsilon), the study's own formula; lower is better.
    mse, mae: mean over the elements; lower is better.
    cosine: similarity of the flattened tensors; higher is better.
    """
    count = len(reference) if images is None else images
    whole = not reference.ndim or len(reference) % count
    q, f = (x.detach().reshape(1 if whole else count, -1).double() for x in (quantized, reference))
    noise, signal = (q - f).square(), f.square()
    figures = {
        "nsr": noise.sum(1) / (signal.sum(1) + EPSILON),
        "relative_error": (noise / (signal + EPSILON)).mean(1),
        "mse": noise.mean(1),
        "mae": (q - f).abs().mean(1),
        "cosine": torch.nn.functional.cosine_similarity(q, f, dim=1),
    }
    return {name: values.expand(count) for name, values in figures.items()}


def sqnr_db(nsr: float) -> float:
    """Signal to quantization noise in decibels, -10 log10(nsr); higher is better; infinite without noise."""
    return math.inf if nsr <= 0 else -10 * math.log10(nsr)


@dataclass
class ErrorMeter:
    """Accumulates the figures of `per_image` over batches."""

    # Floats, not tensors: small tensors that live long keep the freed large ones between them unusable.
    values: dict[str, list[float]] = field(default_factory=lambda: {figure: [] for figure in FIGURES})

    def add(self, quantized: Tensor, reference: Tensor, images: int | None = None) -> None:
        for figure, values in per_image(quantized, reference, images).items():
            self.values[figure] += values.tolist()

    def images(self, figure: str) -> Tensor:
        """One figure of every image seen, in order."""
        return torch.tensor(self.values[figure], dtype=torch.float64)

    def summary(self) -> dict[str, float]:
        """Means over all images, and `sqnr_db` of the mean nsr."""
        means = {figure: float(self.images(figure).mean()) for figure in FIGURES}
        return {"nsr": means["nsr"], "sqnr_db": sqnr_db(means["nsr"]), **means}
