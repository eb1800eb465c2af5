"""Images made from a model: gradient descent on the input, which no real image starts or guides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ptq2themoon.graph.editing.onnx_graph import tensor_shapes
from ptq2themoon.graph.meaning.attention_facts import attention_facts
from ptq2themoon.ppq_compat import quiet_ppq
from ptq2themoon.progress import progress
from ptq2themoon.quantize.learning.loop import kept_of, put_back
from ptq2themoon.quantize.learning.state import State
from ptq2themoon.quantize.patch_entropy import differential_entropy, patch_similarity, total_variation
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.model_info import PreprocessingInfo
from ptq2themoon.vocabulary.operators import Operator

# The batch for which the paper's code states total variation: 32 images of 3 x 224 x 224.
PIXELS_OF_THE_PAPER = 32 * 3 * 224 * 224
ROUNDS = (15 / 224, 30 / 224)  # the farthest that images are moved, as a share of their side
BETAS = (0.5, 0.9)  # of Adam
WARM_UP = 0.2  # share of a round
SAVE_EVERY = 20  # steps
BANDWIDTH, POINTS = 0.01, 10  # of the paper's density


class Attended(NamedTuple):
    """The output of one block's self-attention, before its projection.

    Attributes:
        name: of the tensor, [..., tokens, channels].
        prefix: tokens before the patches.
    """

    name: str
    heads: int
    prefix: int


def attended(graph: onnx.ModelProto, operators: Sequence[Operator]) -> list[Attended]:
    """Those of all blocks in which two patches or more attend to each other, in graph order."""
    facts = attention_facts(graph, list(operators))["blocks"]
    products = {o.block: o.name for o in operators if o.role == "attn_context"}
    outputs = {node.name: node.output[0] for node in graph.graph.node}
    shapes = tensor_shapes(graph, batch=1)
    found = []
    for block, each in enumerate(facts):
        name = outputs[products[block]]
        tokens = shapes.get(name, ())[-2:-1]
        many = [size for size in tokens if isinstance(size, int) and size - each["prefix_tokens"] > 1]
        if many and each["heads"]:
            found.append(Attended(name, each["heads"], each["prefix_tokens"]))
    return found


@dataclass(frozen=True)
class Weights:
    """How the parts of the loss count, and the estimate of the density.

    Attributes:
        entropy: of the patches' similarities, which is maximised.
        one_hot: of the cross entropy with the target classes.
        variation: of the distance of total variation from its target.
        points: at which the density is taken.
    """

    entropy: float
    one_hot: float
    variation: float
    bandwidth: float
    points: int


@dataclass
class Loss:
    """The loss of images, and its gradient; in parts that fit in memory.

    Args:
        floating: a model without quantizers.
        targets: a class for each image; None where the model has no classes.
        wanted_variation: total variation that the batch is led to, in the measure of the paper's batch.

    Attributes:
        values: of the last call, by part of the loss.
    """

    floating: SimulatedModel
    outputs: Sequence[Attended]
    weights: Weights
    targets: Tensor | None
    wanted_variation: float
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = [*self.floating.outputs, *(each.name for each in self.outputs)]
        self.program = self.floating.trainable(self.floating.order, wanted)

    def __call__(self, images: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient, [B, C, H, W]; `images` gets no history."""
        values = {"entropy": 0.0, "class": 0.0}
        gradients: list[Tensor] = []
        done = 0
        for part in self.floating.parts(images):
            part = part.detach().requires_grad_()
            with torch.enable_grad(), quiet_ppq():
                entropy, error = self.of_model(part, done)
                share = len(part) / len(images)
                loss = share * (self.weights.one_hot * error - self.weights.entropy * entropy)
                gradients += torch.autograd.grad(loss, [part])
            values["entropy"] += share * float(entropy.detach())
            values["class"] += share * float(error.detach())
            done += len(part)
        distance, gradient = self._of_variation(images)
        values["variation"] = distance
        self.values = values
        weights = self.weights
        total = weights.one_hot * values["class"] - weights.entropy * values["entropy"]
        total += weights.variation * distance
        return total, torch.cat(gradients) + weights.variation * gradient

    def of_model(self, part: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Means over images: the entropies' sum over blocks, and the cross entropy with `targets[start:]`."""
        logits, *outputs = self.program.run({self.floating.input_name: part})
        entropy = part.new_zeros(())
        for each, output in zip(self.outputs, outputs, strict=True):
            similar = patch_similarity(output, len(part), each.heads, each.prefix)
            entropy = (
                entropy + differential_entropy(similar, self.weights.bandwidth, self.weights.points).mean()
            )
        if self.targets is None:
            return entropy, part.new_zeros(())
        return entropy, cross_entropy(logits, self.targets[start : start + len(part)])

    def _of_variation(self, images: Tensor) -> tuple[float, Tensor]:
        """|V - wanted| with V in the measure of the paper's batch, and its gradient."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            measure = math.sqrt(PIXELS_OF_THE_PAPER / images.numel())
            distance = (measure * total_variation(images) - self.wanted_variation).abs()
            (gradient,) = torch.autograd.grad(distance, [images])
        return float(distance.detach()), gradient

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())


def mean_entropy(floating: SimulatedModel, outputs: Sequence[Attended], batches: Iterable[Tensor]) -> float:
    """Entropy of patch similarity with the paper's density, summed over blocks, mean over images."""
    weights = Weights(entropy=1, one_hot=0, variation=0, bandwidth=BANDWIDTH, points=POINTS)
    loss, total, count = Loss(floating, outputs, weights, None, 0.0), 0.0, 0
    with torch.no_grad(), quiet_ppq():
        for images in batches:
            total += len(images) * float(loss.of_model(images.to(floating.device), 0)[0])
            count += len(images)
    return total / count


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
