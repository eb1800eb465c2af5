"""What kinds of ONNX operator there are: those that only move data, linear layers, and where channels lie."""

from __future__ import annotations

from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import attribute

DOMAIN = "ptq2themoon"  # of the model-local functions below
FUSED_MATMUL = "PPQBiasFusedMatMul"
RMS_NORM = "RMSNormalization"
NORM_TYPES = ("LayerNormalization", RMS_NORM)

# Each element once, in another shape or order: a scalar factor gives equal values before and after.
RESHAPING = frozenset({"Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# These can leave the channels on the last axis as they are; attributes and shapes say whether they do.
# The other operators of data movement repeat, mix or cut the last axis, or number it anew.
KEEPING_LAST_AXIS = RESHAPING | {"Concat", "Identity", "Pad", "Slice"}
# No arithmetic: each value of the output is a value of the input, or the fill of a Pad.
DATA_MOVEMENT = KEEPING_LAST_AXIS | {
    *("DepthToSpace", "Expand", "Flatten", "Gather", "SpaceToDepth", "Split", "Tile"),
}
# What lies on a quantizer's grid lies on it still. Without Pad, whose fill may be no value of the grid.
KEEPING_GRID = DATA_MOVEMENT - {"Pad"}
MANY_DATA_INPUTS = frozenset({"Concat"})  # of data movement; elsewhere all inputs but the first say where

LINEAR_TYPES = (FUSED_MATMUL, "Gemm", "MatMul")
WEIGHTED_TYPES = (*LINEAR_TYPES, "Conv")
BIAS = 2  # position of the bias among the inputs of all of these
IMAGE_TYPES = frozenset({  # of images [B, C, H, W]
    "AveragePool", "BatchNormalization", "Conv", "GlobalAveragePool", "GlobalMaxPool",
    "InstanceNormalization", "MaxPool", "Resize",
})  # fmt: skip


def data_inputs(node: NodeProto) -> list[str]:
    """Names of the inputs whose values an operator of data movement moves."""
    return list(node.input if node.op_type in MANY_DATA_INPUTS else node.input[:1])


def has_bias(node: NodeProto) -> bool:
    """Whether a linear layer or convolution has a bias, be it a constant or not."""
    return len(node.input) > BIAS and bool(node.input[BIAS])


def holds_out_in(node: NodeProto) -> bool:
    """Whether a linear layer holds its weight as [out, in], as Gemm can; else it is [in, out]."""
    return bool(attribute(node, "transB", 0))


def output_axis(op_type: str, transposed: bool) -> int:
    """Axis of the output channels in the weight of a linear layer or convolution.

    Args:
        transposed: what `holds_out_in` says.
    """
    return 0 if op_type == "Conv" or transposed else 1


def channel_axis(op_type: str) -> int:
    """Axis of the channels in the activations of an operator: 1 of images, -1 of tokens."""
    return 1 if op_type in IMAGE_TYPES else -1
