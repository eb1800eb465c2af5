"""How much the patches of an image differ from each other in a model's attention, with a gradient.

Li et al. (PSAQ-ViT), "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022,
arXiv 2203.02250, section 3. A real image has a foreground and a background: the outputs of its patches after
self-attention are alike within each and differ between them. Those of noise are all alike. The entropy of
the distribution of similarities tells the two apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOOR = 1e-4  # added to a density, whose logarithm is taken
SHORTEST = 1e-8  # norm of a vector that has no direction


def patch_similarity(output: Tensor, images: int, heads: int, prefix: int) -> Tensor:
    """Cosine similarity of all pairs of patches, [sets, patches²], of outputs that are averaged over heads.

    Args:
        output: of the product of attention and values, [..., tokens, channels]; the leading axes hold
            images, sets of tokens that attend apart (windows), and heads, in this order.
        images: in the batch.
        prefix: tokens before the patches, such as the class token, which are left out.
    """
    tokens, channels = output.shape[-2:]
    patches = output.reshape(-1, heads, tokens, channels).mean(1)[:, prefix:]
    if len(patches) % images:
        raise ValueError(f"outputs {list(output.shape)} hold no whole sets of tokens of {images} images")
    directions = patches / patches.norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
    return (directions @ directions.transpose(-1, -2)).flatten(1)


def grid_of(values: Tensor, points: int) -> Tensor:
    """As many points at equal distances from each row's least value to its greatest, [rows, points].

    They are constants: no gradient goes through them.
    """
    low, high = torch.aminmax(values.detach(), dim=1)
    steps = torch.linspace(0, 1, points, dtype=values.dtype, device=values.device)
    return low[:, None] + (high - low)[:, None] * steps


def differential_entropy(values: Tensor, bandwidth: float, points: int) -> Tensor:
    """-∫ f ln f of each row of values [rows, n], in nats, [rows].

    f is the density that Gaussian kernels of this bandwidth give; the integral is the trapezoidal rule's
    over the points of `grid_of`.
    """
    grid = grid_of(values, points)
    # One point after another: a kernel for each point and value at once would fill the memory.
    kernels = [torch.exp(-((grid[:, i : i + 1] - values) / bandwidth).square() / 2) for i in range(points)]
    density = torch.stack([kernel.mean(1) for kernel in kernels], 1) / (bandwidth * math.sqrt(2 * math.pi))
    density = density + FLOOR
    return torch.trapezoid(-density * density.log(), grid, dim=1)


def total_variation(images: Tensor) -> Tensor:
    """Sum over four directions of the norm of differences of neighbouring pixels, for images [B, C, H, W].

    The directions are across, down and the two diagonals. A norm is one over the whole batch, so it grows
    with the root of the number of pixels.
    """
    across = images[..., :, :-1] - images[..., :, 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    return torch.stack([each.norm() for each in (across, down, rising, falling)]).sum()
