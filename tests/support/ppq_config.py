"""PPQ's configuration of one tensor, as the tests that hold PPQ to plain arithmetic need it."""

from __future__ import annotations

import torch

from ptq2themoon.ppq_compat import core


def config(
    scale: object = None,
    axis: int | None = None,
    bits: int = 8,
    observer: str = "minmax",
    quantile: float | None = None,
) -> core.TensorQuantizationConfig:
    """Linear and symmetric; in force when `scale` is given, else waiting for an observer."""
    properties, states = core.QuantizationProperty, core.QuantizationStates
    granularity = properties.PER_TENSOR if axis is None else properties.PER_CHANNEL
    found = core.TensorQuantizationConfig(
        policy=core.QuantizationPolicy(properties.SYMMETRICAL + properties.LINEAR + granularity),
        rounding=core.RoundingPolicy.ROUND_HALF_EVEN,
        num_of_bits=bits,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        observer_algorithm=observer,
        channel_axis=axis,
        state=states.INITIAL if scale is None else states.ACTIVATED,
    )
    if scale is not None:
        found.scale = torch.tensor(scale, dtype=torch.float32)
        found.offset = torch.zeros_like(found.scale)
    if quantile is not None:
        found.detail[core.OBSERVER_PERCENTILE_MANUL_OVERRIDE] = quantile
    return found
