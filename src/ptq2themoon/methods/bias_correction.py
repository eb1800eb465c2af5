"""Bias correction: take the mean error that quantization makes out of each linear layer's bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv
1906.04721, section 4.2, in the empirical form of its appendix D. With y the output of a layer in floating
point and y^ its output in the quantized model,

    b <- b - E[y^ - y]

for each output channel, the mean over calibration images and tokens. Layers are corrected in the order of
the graph, so that each sees what the corrections before it left. Where the recipe quantizes a layer's own
output, y^ is the quantized output; where it quantizes the bias, the corrected bias is quantized again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute
from ptq2themoon.graph.editing.operator_types import (
    BIAS,
    WEIGHTED_TYPES,
    channel_axis,
    has_bias,
    holds_out_in,
    output_axis,
)
from ptq2themoon.methods.base import Method, Stage
from ptq2themoon.progress import progress
from ptq2themoon.vocabulary.errors import UserError

if TYPE_CHECKING:
    from onnx import NodeProto
    from torch import Tensor

    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.program import Program, Step
    from ptq2themoon.quantize.states import States
    from ptq2themoon.quantize.tools import Tools


class BiasCorrection(Method):
    """Of every linear layer and convolution with constant weights of which anything is quantized."""

    stage = Stage.BIASES

    def before(self, model: QuantizedModel, tools: Tools) -> None:
        """Give a bias of zeros to layers that have none."""
        graph = model.graph()
        quantized = {item.operator.name for item in tools.plan(model)}
        if not quantized.intersection(node.name for node in correctable(graph)):
            raise UserError("bias_correction: the recipe quantizes no linear layer; leave the method out")
        model.set_parameters(
            {
                (node.name, BIAS): np.zeros(_channels(graph, node), np.float32)
                for node in correctable(graph)
                if node.name in quantized and not has_bias(node)
            },
            equal=True,
        )

    def after(self, model: QuantizedModel, tools: Tools) -> None:
        """Walk through the graph with all images at once, each layer corrected before the next is run."""
        graph = model.graph()
        quantized = {item.operator.name for item in model.quantized}
        axes = {n.name: channel_axis(n.op_type) for n in correctable(graph) if n.name in quantized}
        wanted = tools.channel_means(tools.floating(model), axes)
        simulation = tools.simulation(model)
        program, biases = simulation.program(), {}
        passed: list[Step] = []
        with tools.without_gradients(), tools.states(simulation) as states:
            for step in progress(program.steps, desc="bias correction"):
                if step.name in axes:
                    states.advance(passed)
                    passed = []
                    error = _mean(program, step, states, axes[step.name]) - wanted[step.name]
                    biases[step.name, BIAS] = _correct(step, graph, error, model, tools)
                passed.append(step)
        model.set_parameters(biases, equal=False)


def _correct(step: Step, graph: Graph, error: Tensor, model: QuantizedModel, tools: Tools) -> np.ndarray:
    """The corrected bias, put in force in the step; quantized again where the recipe quantizes it."""
    (node,) = (node for node in graph.nodes if node.name == step.name)
    bias = (graph.constants[node.input[BIAS]].astype(np.float64) - error.numpy()).astype(np.float32)
    step.inputs[BIAS].constant = tools.fit_constant(model, step.name, BIAS, bias)
    return bias


def correctable(graph: Graph) -> list[NodeProto]:
    """Linear layers and convolutions with constant weights that add their bias as it is."""
    return [
        node
        for node in graph.nodes
        if node.op_type in WEIGHTED_TYPES
        and node.input[1] in graph.constants
        and graph.constants[node.input[1]].ndim == (4 if node.op_type == "Conv" else 2)
        and attribute(node, "beta", 1.0) == 1.0
        and (not has_bias(node) or node.input[BIAS] in graph.constants)
    ]


def _channels(graph: Graph, node: NodeProto) -> int:
    return int(graph.constants[node.input[1]].shape[output_axis(node.op_type, holds_out_in(node))])


def _mean(program: Program, step: Step, states: States, axis: int) -> Tensor:
    """Mean of each channel of the step's output over all states, float64."""
    total, count = None, 0
    for state in states:
        rows = program.compute(step, state)[1][0].movedim(axis, -1).flatten(0, -2).double()
        total = rows.sum(0) if total is None else total + rows.sum(0)
        count += len(rows)
    assert total is not None
    return (total / count).cpu()


METHOD = BiasCorrection
