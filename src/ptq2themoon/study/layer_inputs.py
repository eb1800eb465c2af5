"""The inputs of the layers of a model in floating point: class token and patch tokens, channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec
from ptq2themoon.evaluate.attention_query import CLASS_TOKEN
from ptq2themoon.graph.editing.operator_types import IMAGE_TYPES
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.study.names import ALL, CLASS, PATCH
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.study_parameters import LAYERS


@dataclass(frozen=True)
class Layer:
    """One of `LAYERS` in one block, and how its input is read.

    Attributes:
        operator: the operator whose first input it is; the query's, where query, key and value have one each.
        spec: what its block says of tokens.
        image: whether the channels follow the batch, not come last.
    """

    name: str
    block: int
    operator: str
    spec: AttentionSpec
    image: bool = False

    def tokens(self, value: Tensor, images: int) -> Tensor:
        """[B, tokens, channels] of an input of `images` (B), which may be [B * windows, tokens, channels]."""
        last = value.movedim(1, -1) if self.image else value
        return last.reshape(images, -1, last.shape[-1])

    def kinds(self, tokens: Tensor) -> dict[str, Tensor]:
        """The patch tokens of [B, tokens, channels], and the class token where there is one.

        Prefix tokens other than the class token are of neither kind.
        """
        prefix = self._prefix(tokens.shape[1])
        kinds = {PATCH: tokens[:, prefix:]}
        if prefix and self.spec.query == CLASS_TOKEN:
            kinds[CLASS] = tokens[:, :1]
        return kinds

    def _prefix(self, tokens: int) -> int:
        """Tokens before the patches; 0 where the layer has other tokens than the block's attention."""
        if self.spec.grid is None:
            return 0
        rows, columns = self.spec.grid
        return self.spec.prefix_tokens if tokens == rows * columns + self.spec.prefix_tokens else 0


class Layers(NamedTuple):
    """The layers of a model, by layer and block, and what is treated as class token, or why there is none."""

    layers: list[Layer]
    blocks: int
    note: str


def read_layers(fused: FusedModel) -> Layers:
    """The layers of a model; what it has not is left out.

    Raises:
        UserError: it has none of the layers.
    """
    places: dict[tuple[str | None, int], Operator] = {}
    for operator in fused.operators:
        if operator.block is not None:
            places.setdefault((operator.role, operator.block), operator)
    blocks = 1 + max((block for _, block in places), default=-1)
    specs = [attention_spec(fused.report.attention, block) for block in range(blocks)]
    layers = []
    for name, roles in LAYERS.items():
        for block, spec in enumerate(specs):
            found = [places[role, block] for role in roles if (role, block) in places]
            if found:
                layers.append(Layer(name, block, found[0].name, spec, found[0].type in IMAGE_TYPES))
    if not layers:
        raise UserError(
            f"{fused.path}: no block has a layer {', '.join(LAYERS)}; see `unassigned` in fusion.json"
        )
    return Layers(layers, blocks, specs[0].note)


See = Callable[[Layer, Tensor, int], None]


def capture_inputs(
    model: SimulatedModel, batches: Iterable[Tensor], layers: Sequence[Layer], see: See
) -> None:
    """Call `see` with each layer, its input as the graph has it and the number of images it is of.

    Args:
        batches: images [B, C, H, W].
    """
    of_operator = {layer.operator: layer for layer in layers}

    def capture(images: int, name: str, inputs: list[Tensor], _: list[Tensor]) -> None:
        if not bool(torch.isfinite(inputs[0]).all()):
            raise UserError(f"operator {name!r}: its input is not finite")
        see(of_operator[name], inputs[0], images)

    for images in progress(batches, desc="inputs of the layers"):
        for part in model.parts(images):
            model(part, dict.fromkeys(of_operator, partial(capture, len(part))))


class Range:
    """Running minimum and maximum of each channel."""

    def __init__(self, channels: int) -> None:
        self.minimum = torch.full((channels,), torch.inf)
        self.maximum = -self.minimum

    def add(self, tokens: Tensor) -> None:
        """Tokens [B, tokens, channels]."""
        low, high = tokens.flatten(0, 1).aminmax(dim=0)
        self.minimum = torch.minimum(self.minimum, low.cpu())
        self.maximum = torch.maximum(self.maximum, high.cpu())

    @property
    def range(self) -> Tensor:
        """[channels]"""
        return self.maximum - self.minimum


class Ranges(dict[tuple[str, int], dict[str, Range]]):
    """Ranges of all tokens, the patch tokens and the class token, by layer and block."""

    def see(self, layer: Layer, value: Tensor, images: int) -> None:
        """Widen the ranges by a layer's input, as `capture_inputs` gives it."""
        tokens = layer.tokens(value, images)
        place = self.setdefault((layer.name, layer.block), {})
        for kind, part in {ALL: tokens, **layer.kinds(tokens)}.items():
            place.setdefault(kind, Range(tokens.shape[-1])).add(part)


def channel_table(ranges: Ranges) -> pd.DataFrame:
    """One row a layer, block and channel; of the class token there are columns where a model has one."""
    rows = []
    for (layer, block), kinds in ranges.items():
        channels = len(kinds[ALL].minimum)
        columns = {"layer": layer, "block": block, "channel": range(channels)}
        for kind, found in kinds.items():
            prefix = "" if kind == ALL else f"{kind}_"
            columns[f"{prefix}minimum"] = found.minimum.numpy()
            columns[f"{prefix}maximum"] = found.maximum.numpy()
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def largest_table(ranges: Ranges, images: int, note: str) -> pd.DataFrame:
    """The channel of the largest range in each layer, block and kind of token."""
    rows = []
    for (layer, block), kinds in ranges.items():
        for kind, found in kinds.items():
            channel = int(found.range.argmax())
            rows.append(
                {
                    "layer": layer,
                    "block": block,
                    "tokens": kind,
                    "channels": len(found.range),
                    "channel": channel,
                    "minimum": float(found.minimum[channel]),
                    "maximum": float(found.maximum[channel]),
                    "range": float(found.range[channel]),
                    "median_range": float(found.range.median()),
                    "images": images,
                    "class_token": note,
                }
            )
    return pd.DataFrame(rows)
