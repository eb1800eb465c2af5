"""RMSNorm as one operator: x / sqrt(mean(x^2) + epsilon) * gamma over the last axis.

ONNX has `RMSNormalization` from opset 23 on, three more than fused graphs have. So it is a model-local
function with that name and those inputs, and INT8 models have it written out, in the form that ONNX Runtime
fuses to one kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, helper

from ptq2themoon.graph.editing.operator_types import DOMAIN, RMS_NORM
from ptq2themoon.graph.forms.normalise import FUSED_OPSET

EPSILON = 1e-5  # where a LayerNorm names none, as ONNX has it


def rms_norm(name: str, x: str, gamma: str, output: str, epsilon: float) -> NodeProto:
    """The operator."""
    return helper.make_node(RMS_NORM, [x, gamma], [output], name=name, domain=DOMAIN, epsilon=epsilon)


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which gets the function where an operator needs it and it has none yet."""
    needed = any(node.op_type == RMS_NORM for node in model.graph.node)
    if needed and not any(function.name == RMS_NORM for function in model.functions):
        model.functions.append(_function())
    return model


def written_out(
    node: NodeProto,
    x: str,
    gamma: str,
    output: str,
    name: Callable[[str], str],
    constant: Callable[[str, np.ndarray], str],
) -> list[NodeProto]:
    """The operator as primitive ones.

    Args:
        name: makes a name that is free.
        constant: adds a constant.
    """
    epsilon = next(item.f for item in node.attribute if item.name == "epsilon")
    constants = [
        constant(f"{node.name}/{what}", value)
        for what, value in (
            ("two", np.array(2, np.float32)),
            ("axes", np.array([-1], np.int64)),
            ("epsilon", np.array(epsilon, np.float32)),
        )
    ]
    return _body(x, gamma, output, constants, lambda what: name(f"{node.name}/{what}"))


def _body(
    x: str, gamma: str, output: str, constants: list[str], name: Callable[[str], str]
) -> list[NodeProto]:
    two, axes, epsilon = constants
    steps = [("Pow", [two]), ("ReduceMean", [axes]), ("Add", [epsilon]), ("Sqrt", [])]
    nodes, last = [], x
    for kind, more in steps:
        made = name(f"{kind.lower()}/out")
        nodes.append(helper.make_node(kind, [last, *more], [made], name=name(kind.lower())))
        last = made
    divided = name("div/out")
    nodes.append(helper.make_node("Div", [x, last], [divided], name=name("div")))
    nodes.append(helper.make_node("Mul", [divided, gamma], [output], name=name("mul")))
    return nodes


def _function() -> onnx.FunctionProto:
    constants = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["axes"], value_ints=[-1]),
        helper.make_node("Constant", [], ["epsilon_value"]),
    ]
    kind = onnx.AttributeProto.FLOAT
    constants[2].attribute.append(onnx.AttributeProto(name="value_float", type=kind, ref_attr_name="epsilon"))
    body = [*constants, *_body("x", "gamma", "y", ["two", "axes", "epsilon_value"], lambda what: what)]
    opset = [helper.make_opsetid("", FUSED_OPSET)]
    return helper.make_function(DOMAIN, RMS_NORM, ["x", "gamma"], ["y"], body, opset, attributes=["epsilon"])
