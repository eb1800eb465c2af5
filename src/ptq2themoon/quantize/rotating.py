"""Rotate residual streams and heads of a model: what writes them and what reads them take the rotation in.

A stream. A LayerNorm's mean goes before all else: what writes the stream is centred, x -> x M with
M = I - 1 1^T / C, and gamma and beta go into the layers that read it. With LN the rest of it and R an
orthogonal matrix, LN(x R) = LN(x) R

    for any R where LN is RMSNorm, x / sqrt(mean(x^2) + epsilon), which equals LN as x has no mean
    for R 1 = 1 where LN is LayerNormalization still: then x R has no mean either

so E, t, p, W_out <- . M R and W_in <- R^T diag(gamma) W_in, b_in <- b_in + beta W_in.

A head. With q R and k R the product (q R)(k R)^T is q k^T. With v R a softmax mixes tokens and leaves
channels what they are, so the projection after attention takes R^T in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, copied, tensor_shapes
from ptq2themoon.graph.editing.operator_types import BIAS, has_bias
from ptq2themoon.graph.forms.linear import linear_layers
from ptq2themoon.graph.forms.rms_norm import EPSILON, rms_norm
from ptq2themoon.graph.forms.streams import NoRotationError, Stream, residual_streams
from ptq2themoon.quantize.heads import Head, Values
from ptq2themoon.quantize.model import QuantizedModel

Parameters = dict[tuple[str, int], np.ndarray]  # by operator and position


def streams_of(model: QuantizedModel) -> list[Stream]:
    """The residual streams of all transformer blocks.

    Raises:
        NoRotationError: one of them cannot be rotated.
    """
    norms = [o.name for o in model.operators if o.role in ("norm1", "norm2")]
    if not norms:
        raise NoRotationError("no transformer block has a LayerNorm that is known as its own")
    return residual_streams(model.graph(), tensor_shapes(model.edited, batch=1), norms)


def rotate_streams(
    model: QuantizedModel, streams: Sequence[Stream], rotations: Sequence[np.ndarray], *, rms: bool
) -> None:
    """Rotate each stream by its own matrix; the output in floating point stays what it is.

    Args:
        streams: of the model as it is.
        rotations: float64 [channels, channels], orthogonal; without `rms` they keep the vector of ones.
        rms: whether LayerNorms become RMSNorms.
    """
    _take_out_factors(model, streams)
    values: Parameters = {}
    for stream, rotation in zip(streams, rotations, strict=True):
        values |= _written(model.graph(), stream, rotation) | _read(model.graph(), stream, rotation)
    model.set_parameters(values, equal=True)
    if rms:
        _make_rms_norms(model, [name for stream in streams for name in stream.readers])


def rotate_heads(model: QuantizedModel, heads: Sequence[Head], rotation: np.ndarray) -> None:
    """Let layers give these heads rotated: all queries and keys of an attention."""
    model.set_parameters(_turned(model.graph(), heads, rotation), equal=True)


def rotate_values(model: QuantizedModel, values: Values, rotation: np.ndarray) -> None:
    """Let a layer give the values of each head rotated, and the projection after attention turn them back."""
    graph = model.graph()
    (reader,) = (layer for layer in linear_layers(graph) if layer.name == values.reader)
    weight = reader.weight.astype(np.float64)
    for rows in values.rows:
        weight[rows] = rotation.T @ weight[rows]
    turned = _turned(graph, values.heads, rotation)
    model.set_parameters(turned | {(reader.name, 1): reader.stored(weight)}, equal=True)


def _turned(graph: Graph, heads: Sequence[Head], rotation: np.ndarray) -> Parameters:
    """Parameters of the layers that make these heads."""
    layers = {layer.name: layer for layer in linear_layers(graph)}
    values: Parameters = {}
    for name in dict.fromkeys(head.maker for head in heads):
        layer = layers[name]
        weight = layer.weight.astype(np.float64)
        bias = np.zeros(weight.shape[1]) if layer.bias is None else layer.bias.astype(np.float64)
        for head in heads:
            if head.maker == name:
                weight[:, head.columns] = weight[:, head.columns] @ rotation
                bias[head.columns] = bias[head.columns] @ rotation
        values[name, 1] = layer.stored(weight)
        if layer.bias is not None:
            values[name, BIAS] = bias
    return values


def _take_out_factors(model: QuantizedModel, streams: Sequence[Stream]) -> None:
    """Multiply factors of channels into the layers before them, whose output takes their name."""
    graph = model.graph()
    nodes = {node.name: node for node in graph.nodes}
    layers = {layer.name: layer for layer in linear_layers(graph)}
    changed: dict[str, list[NodeProto]] = {}
    values: Parameters = {}
    for stream in streams:
        for writer, (operator, factor) in stream.factors.items():
            new = copied(nodes[writer])
            new.output[:] = nodes[operator].output
            changed |= {writer: [new], operator: []}
            layer = layers[writer]
            values[writer, 1] = layer.stored(layer.weight.astype(np.float64) * factor)
            if layer.bias is not None:
                values[writer, BIAS] = layer.bias.astype(np.float64) * factor
    if changed:
        model.replace_operators(changed, {}, equal=True)
        model.set_parameters(values, equal=True)


def _written(graph: Graph, stream: Stream, rotation: np.ndarray) -> Parameters:
    """Parameters of what writes the stream: centred, then rotated."""
    turn = rotation - rotation.mean(0)  # M R
    layers = {layer.name: layer for layer in linear_layers(graph)}
    nodes = {node.name: node for node in graph.nodes}
    values: Parameters = {}
    for (operator, position), axis in stream.constants.items():
        value = graph.constants[nodes[operator].input[position]].astype(np.float64)
        values[operator, position] = np.moveaxis(np.moveaxis(value, axis, -1) @ turn, -1, axis)
    for name in stream.writers:
        layer = layers.get(name)
        if layer is not None:
            values[name, 1] = layer.stored(layer.weight.astype(np.float64) @ turn)
        else:
            weight = graph.constants[nodes[name].input[1]].astype(np.float64)
            values[name, 1] = np.tensordot(turn.T, weight, 1)
        if has_bias(nodes[name]):
            values[name, BIAS] = graph.constants[nodes[name].input[BIAS]].astype(np.float64) @ turn
    return _narrow(values)


def _read(graph: Graph, stream: Stream, rotation: np.ndarray) -> Parameters:
    """Parameters of what reads the stream's LayerNorms, which keep none of their own."""
    layers = {layer.name: layer for layer in linear_layers(graph)}
    nodes = {node.name: node for node in graph.nodes}
    values: Parameters = {}
    for norm, readers in stream.readers.items():
        gamma, *more = (graph.constants[name].astype(np.float64) for name in nodes[norm].input[1:])
        beta = more[0] if more else np.zeros_like(gamma)
        if beta.any() and norm in stream.padded:
            raise NoRotationError(f"zeros are put beside what LayerNorm {norm!r} gives, and beta is not zero")
        values[norm, 1] = np.ones_like(gamma)
        values |= {(norm, 2): np.zeros_like(beta)} if more else {}
        for name in readers:
            layer = layers.get(name)
            weight = layer.weight if layer is not None else graph.constants[nodes[name].input[1]]
            channels_first = weight.astype(np.float64) if layer is not None else weight.swapaxes(0, 1)
            shift = np.tensordot(beta, channels_first, 1)
            turned = np.tensordot(rotation.T * gamma, channels_first, 1)
            values[name, 1] = layer.stored(turned) if layer is not None else turned.swapaxes(0, 1)
            bias = graph.constants[nodes[name].input[BIAS]] if has_bias(nodes[name]) else None
            if bias is not None or beta.any():
                sums = shift.sum(axis=tuple(range(1, shift.ndim)))  # of a convolution's kernel
                values[name, BIAS] = sums + (0.0 if bias is None else bias.astype(np.float64))
    return _narrow(values)


def _narrow(values: Parameters) -> Parameters:
    return {key: value.astype(np.float32) for key, value in values.items()}


def _make_rms_norms(model: QuantizedModel, norms: Sequence[str]) -> None:
    nodes = {node.name: node for node in model.graph().nodes}
    new = {}
    for name in norms:
        norm = nodes[name]
        epsilon = attribute(norm, "epsilon", EPSILON)
        new[name] = [rms_norm(name, norm.input[0], norm.input[1], norm.output[0], epsilon)]
    model.replace_operators(new, {}, equal=True)
