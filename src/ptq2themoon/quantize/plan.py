"""From a recipe and a graph to the list of tensors to quantize, before any scale is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptq2themoon.errors import UserError
from ptq2themoon.graph.nodes import Node
from ptq2themoon.graph.operators import Operator
from ptq2themoon.quantize.recipe import Recipe, TensorSpec
from ptq2themoon.quantize.recipe_file import Operand
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor

# Operators that compute on floats. The others only move data (Reshape, Transpose, Split, Concat, ...),
# choose (Where) or work on shapes: what passes through them was quantized where it was made.
# fmt: off
LINEAR_TYPES = ("Conv", "Gemm", "MatMul", "PPQBiasFusedMatMul")
IMAGE_TYPES = frozenset((  # of images, whose channels follow the batch
    "Conv", "BatchNormalization", "InstanceNormalization", "AveragePool", "MaxPool", "GlobalAveragePool",
    "GlobalMaxPool", "Resize",
))
QUANTIZABLE_TYPES = IMAGE_TYPES | frozenset((
    *LINEAR_TYPES, "Einsum", "LayerNormalization", "Softmax", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt",
    "Reciprocal", "Exp", "Log", "Neg", "Abs", "Min", "Max", "Sum", "Gelu", "Relu", "LeakyRelu", "PRelu",
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
    recipe.check_tensors((o, operand) for o in chosen for operand, _ in _operands(nodes[o.name]))
    planned = []
    for operator in chosen:
        tensors = []
        for operand, position in _operands(nodes[operator.name]):
            spec = recipe.spec(operator, operand, weight_bits, activation_bits)
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
            yield ("bias" if position == 2 else "weight"), position
    for position in range(len(node.output_ranks)):
        yield "output", position


def _tensor(node: Node, operand: Operand, position: int, spec: TensorSpec) -> QuantizedTensor:
    rank = (node.output_ranks if operand == "output" else node.input_ranks)[position]
    per_channel = spec.granularity == "per-channel" and rank > 0  # a scalar has no channels
    return QuantizedTensor(
        operand=operand,
        position=position,
        bits=spec.bits,
        quant_min=spec.quant_min,
        quant_max=spec.quant_max,
        granularity="per-channel" if per_channel else "per-tensor",
        axis=_channel_axis(node, operand, rank, spec) if per_channel else None,
        observer=spec.observer,
        percentile=spec.percentile if spec.observer == "percentile" else None,
    )


def _channel_axis(node: Node, operand: Operand, rank: int, spec: TensorSpec) -> int:
    """Non-negative axis of the channels; last for activations of tokens, first after the batch for images."""
    if operand == "weight" and node.type in LINEAR_TYPES:
        output_axis = 0 if node.type == "Conv" or node.transposed_weight else 1
        return output_axis if spec.weight_axis == "output" else 1 - output_axis
    return 1 if operand in ("input", "output") and node.type in IMAGE_TYPES else rank - 1
