"""Error of a quantized tensor against its floating-point value, over the images of a set.

nsr and sqnr_db are those of `metrics`: ratios of sums over all images. All else is the mean over images of
a figure of one image.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptq2themoon.evaluate.metrics import EPSILON, nsr, sqnr_db

SUMS = ("noise", "signal")
FIGURES = ("nsr", "relative_error", "mse", "mae", "cosine")


def per_image(quantized: Tensor, reference: Tensor, images: int | None = None) -> dict[str, Tensor]:
    """Figures of each image, shape [B] and float64, of two tensors of one shape.

    Args:
        images: B, when the tensors need not be [B, ...]: windows of an image may come one after another
            ([B*k, ...]); a tensor in which images cannot be told apart counts as a whole for each of them.

    noise, signal: sum (q-f)^2 and sum f^2; nsr: their ratio, lower is better. This is what PPQ calls SNR.
    relative_error: mean of (q-f)^2 / (f^2 + epsilon), the study's own formula; lower is better.
    mse, mae: mean over the elements; lower is better.
    cosine: similarity of the flattened tensors; higher is better.
    """
    count = len(reference) if images is None else images
    whole = not reference.ndim or len(reference) % count
    q, f = (x.detach().reshape(1 if whole else count, -1).double() for x in (quantized, reference))
    noise, signal = (q - f).square(), f.square()
    figures = {
        "noise": noise.sum(1),
        "signal": signal.sum(1),
        "nsr": noise.sum(1) / (signal.sum(1) + EPSILON),
        "relative_error": (noise / (signal + EPSILON)).mean(1),
        "mse": noise.mean(1),
        "mae": (q - f).abs().mean(1),
        "cosine": torch.nn.functional.cosine_similarity(q, f, dim=1),
    }
    return {name: values.expand(count) for name, values in figures.items()}


@dataclass
class ErrorMeter:
    """Accumulates the figures of `per_image` over batches."""

    # No tensors: small ones that live long keep the freed large ones between them unusable.
    values: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in (*SUMS, *FIGURES)}
    )

    def add(self, quantized: Tensor, reference: Tensor, images: int | None = None) -> None:
        """Add the figures of each image of a batch; `images` as in `per_image`."""
        for figure, values in per_image(quantized, reference, images).items():
            self.values[figure].extend(values.tolist())

    def images(self, figure: str) -> Tensor:
        """One figure of every image seen, in order."""
        return torch.tensor(self.values[figure], dtype=torch.float64)

    def summary(self) -> dict[str, float]:
        """`nsr` and `sqnr_db` of the sums over all images, and the means over images of the others."""
        ratio = nsr(*(float(self.images(name).sum()) for name in SUMS))
        means = {figure: float(self.images(figure).mean()) for figure in FIGURES if figure != "nsr"}
        return {"nsr": ratio, "sqnr_db": sqnr_db(ratio), **means}
