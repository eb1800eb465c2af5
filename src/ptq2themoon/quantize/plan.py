"""From a recipe and a graph to the list of tensors to quantize, before any scale is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptq2themoon.graph.editing.operator_types import (
    BIAS,
    IMAGE_TYPES,
    NORM_TYPES,
    WEIGHTED_TYPES,
    channel_axis,
    output_axis,
)
from ptq2themoon.graph.meaning.nodes import Node
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipe_language import Operand, Protocol
from ptq2themoon.vocabulary.recipes import Recipe
from ptq2themoon.vocabulary.tensor_spec import TensorSpec

# Operators that compute on floats. The others only move data (Reshape, Transpose, Split, Concat, ...),
# choose (Where) or work on shapes: what passes through them was quantized where it was made.
# fmt: off
QUANTIZABLE_TYPES = IMAGE_TYPES | frozenset((
    *WEIGHTED_TYPES, *NORM_TYPES, "Einsum", "Softmax", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt",
    "Exp", "Log", "Neg", "Abs", "Min", "Max", "Sum", "Gelu", "Relu", "LeakyRelu", "PRelu",
    "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Softplus", "Tanh", "Erf", "Clip", "ReduceMean",
    "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2",
))
# Their other inputs are axes, sizes, bounds or an exponent: 1.99 in the place of 2 has no power of -1.
ONE_FLOAT_INPUT = frozenset((
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "Clip", "Resize", "Pow",
))
# fmt: on


def plan(
    operators: Iterable[Operator],
    nodes: Mapping[str, Node],
    recipe: Recipe,
    weight_bits: int,
    activation_bits: int,
) -> list[QuantizedOperator]:
    """Every quantizable operator of the graph with the tensors that the recipe quantizes.

    Args:
        nodes: shapes and parameters of each operator of the graph, by name.

    Raises:
        UserError: a rule that selects nothing.
    """
    chosen = [operator for operator in operators if operator.type in QUANTIZABLE_TYPES]
    recipe.check(chosen)
    recipe.check_tensors((o, *place) for o in chosen for place in _operands(nodes[o.name]))
    planned = []
    for operator in chosen:
        tensors = []
        for operand, position in _operands(nodes[operator.name]):
            if operand == "output" and recipe.activations == "once" and not nodes[operator.name].is_last:
                continue  # its readers quantize it
            if _is_hidden(nodes[operator.name], operand, position):
                continue  # a scale for what a mask hides leaves the scores no steps
            spec = recipe.spec(operator, operand, weight_bits, activation_bits, position)
            if spec.quantize:
                tensors.append(_tensor(nodes[operator.name], operand, position, spec))
        if tensors:
            planned.append(QuantizedOperator(operator, tensors))
    if not planned:
        raise UserError(
            f"{recipe.sources[-1]}: quantizes nothing; evaluate floating point instead, it is always there"
        )
    return planned


def _operands(node: Node) -> Iterable[tuple[Operand, int]]:
    """(operand, position) of every input that holds floats, then of every output."""
    for position, is_parameter in enumerate(node.parameter_inputs):
        if position > 0 and node.type in ONE_FLOAT_INPUT:
            break
        if not is_parameter:
            yield "input", position
        else:
            yield ("bias" if position == BIAS else "weight"), position
    for position in range(len(node.output_ranks)):
        yield "output", position


def _is_hidden(node: Node, operand: Operand, position: int) -> bool:
    """Whether the tensor holds scores that a mask hides."""
    return position in (node.hidden_outputs if operand == "output" else node.hidden_inputs)


def _tensor(node: Node, operand: Operand, position: int, spec: TensorSpec) -> QuantizedTensor:
    rank = (node.output_ranks if operand == "output" else node.input_ranks)[position]
    axis = None
    if spec.granularity == "per-head":
        axis = _head_axis(node, rank)
    elif spec.granularity == "per-channel" and rank > 0:  # a scalar has no channels
        axis = _channel_axis(node, operand, rank, spec)
    return QuantizedTensor(operand, position, spec, axis)


def _head_axis(node: Node, rank: int) -> int:
    if rank != 4:
        raise UserError(
            f"per-head: a tensor of a {node.type} has {rank} dimensions, not [images, heads, tokens, …]; "
            "use per-tensor for this model"
        )
    return 1


def _channel_axis(node: Node, operand: Operand, rank: int, spec: TensorSpec) -> int:
    """Non-negative axis of the channels; last for activations of tokens, first after the batch for images."""
    if operand == "weight" and node.type in WEIGHTED_TYPES:
        axis = output_axis(node.type, node.transposed_weight)
        return axis if spec.weight_axis == "output" else 1 - axis
    return channel_axis(node.type) % rank if operand in ("input", "output") else rank - 1


def protocol(quantized: Iterable[QuantizedOperator]) -> Protocol:
    """What is quantized at all, so that tables never mix the two.

    `products`: inputs and weights of linear layers and both sides of the attention products alone, as most
    papers do; `all-operators`: LayerNorm, GELU, softmax or residual sums too.
    """
    others = {item.operator.type for item in quantized} - set(WEIGHTED_TYPES)
    return "all-operators" if others else "products"
