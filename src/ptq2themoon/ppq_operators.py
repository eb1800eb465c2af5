"""Operators that PPQ's executor lacks, or computes otherwise than ONNX says; registered on import.

`tests/test_ppq_operators.py` holds each to ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.ppq_compat import core, executor, ir, opdef
from ptq2themoon.vocabulary.errors import UserError

Values = list[Any]  # tensors; None where an optional input is left out
Handler = Callable[..., Any]
PLATFORMS = (core.TargetPlatform.FP32, core.TargetPlatform.EXTENSION)  # in floating point, quantized


def _register(op_type: str, compute: Callable[[ir.Operation, Values], Any]) -> None:
    def handler(operation: ir.Operation, values: Values, ctx: object = None, **_: object) -> Any:
        return compute(operation, values)

    for platform in PLATFORMS:
        executor.register_operation_handler(handler, op_type, platform)
    # PPQ refuses some types above opset 13 when it asks which inputs are shapes; here all run alike.
    opdef.DEFAULT_SOCKET_TABLE.pop(op_type, None)


def _refused(operation: ir.Operation, why: str) -> UserError:
    return UserError(f"operator {operation.name!r} ({operation.type}): {why}; export the model without it")


def _input(values: Values, position: int) -> Any:
    return values[position] if position < len(values) else None


def _gelu(operation: ir.Operation, values: Values) -> Tensor:
    return F.gelu(values[0], approximate=operation.attributes.get("approximate", "none"))


def _rms_norm(operation: ir.Operation, values: Values) -> Tensor:
    x, gamma = values
    mean = x.square().mean(-1, keepdim=True)
    return x / torch.sqrt(mean + operation.attributes["epsilon"]) * gamma


def _mod(operation: ir.Operation, values: Values) -> Tensor:
    """Of the sign of the divisor, with `fmod` of the dividend."""
    return (torch.fmod if operation.attributes.get("fmod", 0) else torch.remainder)(*values)


def _split(operation: ir.Operation, values: Values) -> Sequence[Tensor]:
    """Without sizes, equal parts but for a smaller last one."""
    axis = operation.attributes.get("axis", 0)
    sizes = _input(values, 1)
    equal = math.ceil(values[0].shape[axis] / len(operation.outputs))
    return torch.split(values[0], equal if sizes is None else sizes.tolist(), axis)


def _einsum(operation: ir.Operation, values: Values) -> Tensor:
    return torch.einsum(operation.attributes["equation"], *values)


def _gather(operation: ir.Operation, values: Values) -> Tensor:
    """PPQ's own gives back its input where the axis is counted from the end."""
    value, wanted = values
    axis = operation.attributes.get("axis", 0) % value.ndim
    wanted = torch.as_tensor(wanted, device=value.device)
    shape = (*value.shape[:axis], *wanted.shape, *value.shape[axis + 1 :])
    return value.index_select(axis, (wanted % value.shape[axis]).flatten()).reshape(shape)


def _pad(operation: ir.Operation, values: Values) -> Tensor:
    """Pads on some axes, since opset 18."""
    value, rank = values[0], values[0].ndim
    axes = range(rank) if _input(values, 3) is None else [int(axis) % rank for axis in values[3]]
    amounts = values[1].tolist()
    before = dict(zip(axes, amounts, strict=False))
    after = dict(zip(axes, amounts[len(before) :], strict=True))
    mode = operation.attributes.get("mode", "constant")
    pairs = [(before.get(axis, 0), after.get(axis, 0)) for axis in range(rank)]
    if mode == "constant":
        fill = 0 if _input(values, 2) is None else values[2].item()
        return F.pad(value, [amount for pair in reversed(pairs) for amount in pair], value=fill)
    for axis, pair in enumerate(pairs):
        value = _padded_from_itself(operation, value, axis, pair, mode)
    return value


def _padded_from_itself(
    operation: ir.Operation, value: Tensor, axis: int, pair: tuple[int, int], mode: str
) -> Tensor:
    size = value.shape[axis]
    at = torch.arange(-pair[0], size + pair[1], device=value.device)
    if mode == "edge":
        at = at.clamp(0, size - 1)
    elif mode == "reflect" and max(pair) < size:
        at = (size - 1) - (at.abs() - (size - 1)).abs()
    elif mode == "wrap":
        at = at % size
    else:
        raise _refused(operation, f"pads of mode {mode!r} are not implemented")
    return value.index_select(axis, at)


def _reduction(reduce: Callable[..., Tensor]) -> Callable[[ir.Operation, Values], Tensor]:
    """Over the axes that are an input (since opset 18) or an attribute; over all where there are none."""

    def compute(operation: ir.Operation, values: Values) -> Tensor:
        axes = _input(values, 1)
        chosen = operation.attributes.get("axes") if axes is None else axes.tolist()
        if not chosen and operation.attributes.get("noop_with_empty_axes", 0):
            return values[0]
        dims = tuple(chosen or range(values[0].ndim))
        return reduce(values[0], dim=dims, keepdim=bool(operation.attributes.get("keepdims", 1)))

    return compute


def _average_pool(operation: ir.Operation, values: Values) -> Tensor:
    """The zeros of the border do not count, unless the operator says so."""
    attributes, value = operation.attributes, values[0]
    spatial = value.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    dilated = any(step != 1 for step in attributes.get("dilations", []))
    automatic = attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if spatial != 2 or pads[:spatial] != pads[spatial:] or dilated or automatic:
        raise _refused(
            operation, "only pools of rows and columns with equal pads on both sides are implemented"
        )
    return F.avg_pool2d(
        value,
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        pads[:spatial],
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _conv(operation: ir.Operation, values: Values) -> Tensor:
    """PPQ's own, whose first call forgets the pads that `auto_pad` stands for."""
    attributes = operation.attributes
    automatic = attributes.pop("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        image, kernel = values[0].shape[2:], values[1].shape[2:]
        steps, dilations = (attributes.get(key, [1] * len(kernel)) for key in ("strides", "dilations"))
        needed = [
            max((math.ceil(n / step) - 1) * step + (k - 1) * dilation + 1 - n, 0)
            for n, k, step, dilation in zip(image, kernel, steps, dilations, strict=True)
        ]
        less, more = [n // 2 for n in needed], [n - n // 2 for n in needed]
        attributes["pads"] = less + more if automatic == "SAME_UPPER" else more + less
    return _PPQ_CONV(operation, values)


def _prelu(_: ir.Operation, values: Values) -> Tensor:
    value, slope = values
    return torch.where(value < 0, value * slope, value)


def _depth_to_space(operation: ir.Operation, values: Values) -> Tensor:
    b, c, h, w = values[0].shape
    k = operation.attributes["blocksize"]
    if operation.attributes.get("mode", "DCR") == "DCR":
        parts = values[0].reshape(b, k, k, c // k**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = values[0].reshape(b, c // k**2, k, k, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(b, c // k**2, h * k, w * k)


def _space_to_depth(operation: ir.Operation, values: Values) -> Tensor:
    b, c, h, w = values[0].shape
    k = operation.attributes["blocksize"]
    parts = values[0].reshape(b, c, h // k, k, w // k, k).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(b, c * k**2, h // k, w // k)


def _resize(operation: ir.Operation, values: Values) -> Tensor:
    """Axis by axis, as a product with the matrix of its weights. Inputs: image, region, scales, sizes."""
    value, scales, sizes, attributes = values[0], _input(values, 2), _input(values, 3), operation.attributes
    for name in ("antialias", "exclude_outside", "axes", "keep_aspect_ratio_policy"):
        if attributes.get(name) not in (None, 0, "stretch"):
            raise _refused(operation, f"{name} is not implemented")
    if scales is not None and scales.numel():
        factors = [float(factor) for factor in scales]
        wanted = [math.floor(n * factor) for n, factor in zip(value.shape, factors, strict=True)]
    else:
        wanted = [int(n) for n in sizes]
        factors = [new / old for new, old in zip(wanted, value.shape, strict=True)]
    for axis, (n, factor) in enumerate(zip(wanted, factors, strict=True)):
        if factor != 1:
            weights = _resize_weights(operation, value.shape[axis], n, factor).to(value)
            value = torch.movedim(torch.movedim(value, axis, -1) @ weights.T, -1, axis)
    return value


def _resize_weights(operation: ir.Operation, old: int, new: int, factor: float) -> Tensor:
    """[new, old]: what each pixel of one axis takes of the old ones; beyond the edge the edge counts."""
    attributes, i = operation.attributes, torch.arange(new, dtype=torch.float64)
    coordinates = {
        "half_pixel": (i + 0.5) / factor - 0.5,
        "pytorch_half_pixel": (i + 0.5) / factor - 0.5 if new > 1 else 0 * i,
        "align_corners": i * (old - 1) / max(new - 1, 1),
        "asymmetric": i / factor,
    }
    transformation = attributes.get("coordinate_transformation_mode", "half_pixel")
    mode = attributes.get("mode", "nearest")
    if transformation not in coordinates:
        raise _refused(operation, f"coordinate_transformation_mode {transformation!r} is not implemented")
    x = coordinates[transformation]
    if mode == "nearest":
        taps = [(_nearest(x, attributes.get("nearest_mode", "round_prefer_floor")), torch.ones_like(x))]
    elif mode == "linear":
        taps = [(x.floor() + k, 1 - (x - x.floor() - k).abs()) for k in (0, 1)]
    else:
        a = attributes.get("cubic_coeff_a", -0.75)
        taps = [(x.floor() + k, _cubic((x - x.floor() - k).abs(), a)) for k in (-1, 0, 1, 2)]
    weights = torch.zeros(new, old, dtype=torch.float64)
    for at, weight in taps:
        weights.scatter_add_(1, at.long().clamp(0, old - 1)[:, None], weight[:, None])
    return weights


def _nearest(x: Tensor, mode: str) -> Tensor:
    return {
        "floor": x.floor(),
        "ceil": x.ceil(),
        "round_prefer_floor": (x - 0.5).ceil(),
        "round_prefer_ceil": (x + 0.5).floor(),
    }[mode]


def _cubic(distance: Tensor, a: float) -> Tensor:
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, far)


def _plain(function: Callable[..., Any]) -> Callable[[ir.Operation, Values], Any]:
    return lambda _, values: function(*values)


_PPQ_CONV = executor.base.OPERATION_FORWARD_TABLE[core.TargetPlatform.FP32]["Conv"]
_COMPUTE: dict[str, Callable[[ir.Operation, Values], Any]] = {
    "Gelu": _gelu,
    "RMSNormalization": _rms_norm,
    "Mod": _mod,
    "Split": _split,
    "Einsum": _einsum,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "AveragePool": _average_pool,
    "Conv": _conv,
    "PRelu": _prelu,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "Mish": _plain(F.mish),
    "Round": _plain(torch.round),
    "Sign": _plain(torch.sign),
    "Ceil": _plain(torch.ceil),
    "IsNaN": _plain(torch.isnan),
    "GreaterOrEqual": _plain(torch.ge),
    "LessOrEqual": _plain(torch.le),
    "Or": _plain(torch.logical_or),
}
for _type, _function in _COMPUTE.items():
    _register(_type, _function)


def missing(graph: ir.BaseGraph) -> list[ir.Operation]:
    """The operators of a graph that no platform of ours can run."""
    return [operation for operation in graph.operations.values() if not runs(operation.type)]


def runs(op_type: str) -> bool:
    """Whether PPQ's executor runs operators of a type, by itself or as this module lets it."""
    return op_type in executor.base.OPERATION_FORWARD_TABLE[core.TargetPlatform.FP32]
