"""What per-tensor and per-channel scales do to the inputs of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ptq2themoon.evaluate.error_meter import ErrorMeter
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.tensors import QuantizedTensor
from ptq2themoon.study.layer_inputs import Layer, Range
from ptq2themoon.study.names import KINDS, PER_CHANNEL, PER_TENSOR
from ptq2themoon.vocabulary.errors import UserError

# Percent: the first bin is all below, the last all that quantization leaves next to nothing of.
EDGES = np.concatenate([[0], np.geomspace(0.1, 99.5, 25), [100]])
MEASURES = ("mse", "mae_sum", "mae_mean", "relative_error", "nsr", "sqnr_db")


def input_tensors(
    qparams: Sequence[Path], layers: Sequence[Layer], quantizer: str
) -> dict[str, QuantizedTensor]:
    """The parameters of each layer's input, by operator.

    Args:
        qparams: qparams.json and its safetensors.
        quantizer: one of `QUANTIZERS`, which the parameters must be.
    """
    found = {
        item.operator.name: tensor
        for item in read_qparams(*qparams).quantized
        for tensor in item.tensors
        if (tensor.operand, tensor.position) == ("input", 0)
    }
    for layer in layers:
        tensor = found.get(layer.operator)
        if tensor is None or tensor.granularity != quantizer.replace(" ", "-"):
            is_ = "not quantized" if tensor is None else f"quantized {tensor.granularity}"
            raise UserError(
                f"{qparams[0]}: the input of {layer.operator!r} is {is_}; "
                f"give parameters of a recipe that quantizes it {quantizer}"
            )
    return found


@dataclass
class _Sums:
    """Of one layer's input with one quantizer: figures of each kind of token, sums of each channel."""

    meters: dict[str, ErrorMeter] = field(default_factory=dict)
    noise: Tensor | float = 0.0
    signal: Tensor | float = 0.0

    def add(self, quantized: Tensor, tokens: Tensor) -> None:
        """Both [B, tokens, channels]."""
        self.noise = self.noise + (quantized - tokens).abs().double().sum((0, 1)).cpu()
        self.signal = self.signal + tokens.abs().double().sum((0, 1)).cpu()

    def percent(self) -> Tensor:
        """[channels]: 100 sum |q - f| / sum |f|, over images and all tokens; 0 of a channel of zeros.

        Never above 100: 0 is on the grid, so that rounding leaves no value farther than 0 is.
        """
        noise, signal = torch.as_tensor(self.noise), torch.as_tensor(self.signal)
        return (100 * noise / signal.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(100)


class BlockLayer(NamedTuple):
    """A layer of one block."""

    layer: str
    block: int


class InputErrors:
    """Errors of the inputs of layers, for each quantizer.

    Args:
        tensors: parameters by quantizer and operator.
    """

    def __init__(self, tensors: Mapping[str, Mapping[str, QuantizedTensor]], device: str) -> None:
        self._tensors, self._device = tensors, device
        self._sums: dict[tuple[BlockLayer, str], _Sums] = {}
        self._ranges: dict[BlockLayer, dict[str, Range]] = {}
        self._operators: dict[BlockLayer, str] = {}

    def see(self, layer: Layer, value: Tensor, images: int) -> None:
        """Add a layer's input, as `capture_inputs` gives it."""
        key, tokens = BlockLayer(layer.name, layer.block), layer.tokens(value, images)
        self._operators[key] = layer.operator
        kinds = layer.kinds(tokens)
        for kind, part in kinds.items():
            ranges = self._ranges.setdefault(key, {})
            ranges.setdefault(kind, Range(tokens.shape[-1])).add(part)
        for quantizer, tensors in self._tensors.items():
            quantized = layer.tokens(tensors[layer.operator].ready()(value), images)
            sums = self._sums.setdefault((key, quantizer), _Sums())
            sums.add(quantized, tokens)
            for kind, part in layer.kinds(quantized).items():
                sums.meters.setdefault(kind, ErrorMeter()).add(part, kinds[kind], images)

    def _scale(self, key: BlockLayer, quantizer: str) -> Tensor:
        scale = self._tensors[quantizer][self._operators[key]].scale
        assert scale is not None
        return scale

    def table(self, note: str) -> pd.DataFrame:
        """One row per layer, block, kind of token and quantizer."""
        return pd.DataFrame(self._rows(note))

    def _rows(self, note: str) -> Iterator[dict[str, object]]:
        for (key, quantizer), sums in self._sums.items():
            for kind in (kind for kind in KINDS if kind in sums.meters):
                meter, ranges = sums.meters[kind], self._ranges[key][kind].range
                found = meter.summary()
                yield {
                    **key._asdict(),
                    "tokens": kind,
                    "quantizer": quantizer,
                    "mse": found["mse"],
                    "mae_sum": found["mae"] * len(ranges),
                    "mae_mean": found["mae"],
                    "relative_error": found["relative_error"],
                    "nsr": found["nsr"],
                    "sqnr_db": found["sqnr_db"],
                    "scale": self._scale(key, quantizer).item() if quantizer == PER_TENSOR else None,
                    "largest_range": float(ranges.max()),
                    "channels": len(ranges),
                    "images": len(meter.images("mse")),
                    "class_token": note,
                }

    def histograms(self) -> pd.DataFrame:
        """Channels in each bin of percentage error, and their median, for each layer, block and quantizer."""
        rows = []
        for (key, quantizer), sums in self._sums.items():
            percent = sums.percent().numpy()
            columns = {**key._asdict(), "quantizer": quantizer, "low": EDGES[:-1], "high": EDGES[1:]}
            counts = np.histogram(percent, EDGES)[0]
            rows.append(pd.DataFrame({**columns, "channels": counts, "median": np.median(percent)}))
        return pd.concat(rows, ignore_index=True)

    def channels(self, block: int) -> pd.DataFrame:
        """Scale and percentage error of every channel of one block."""
        rows = []
        for key in (key for key in self._ranges if key.block == block):
            percent = {q: self._sums[key, q].percent().numpy() for q in self._tensors}
            columns = {
                **key._asdict(),
                "channel": range(len(percent[PER_TENSOR])),
                "scale_per_tensor": self._scale(key, PER_TENSOR).item(),
                "scale_per_channel": self._scale(key, PER_CHANNEL).numpy(),
                "percent_per_tensor": percent[PER_TENSOR],
                "percent_per_channel": percent[PER_CHANNEL],
            }
            rows.append(pd.DataFrame(columns))
        return pd.concat(rows, ignore_index=True)


def averages(errors: pd.DataFrame) -> pd.DataFrame:
    """Means over blocks of every figure of `InputErrors.table`, by layer, kind of token and quantizer."""
    groups = errors.groupby(["layer", "tokens", "quantizer"], sort=False)
    table = groups[list(MEASURES)].mean()
    table.insert(0, "blocks", groups["block"].count())
    table[["images", "class_token"]] = groups[["images", "class_token"]].first()
    return table.reset_index()
