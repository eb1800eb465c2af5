"""An INT8 model that takes pixels: the normalisation that its metadata state goes into its graph."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ptq2themoon.graph.editing.onnx_graph import copied, unique_name
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import PreprocessingInfo
from ptq2themoon.vocabulary.records import parsed
from ptq2themoon.vocabulary.validation import validate

INPUT = "pixels"
STATED = "preprocessing"  # the key of the metadata
NORMALISED = "normalised"  # the key that says where: "in the graph"


def with_pixels(model: ModelProto, name: str) -> ModelProto:
    """The model with the input `pixels`: uint8 [batch, height, width, channels], RGB or grey.

    The graph divides by 255, takes the mean away and divides by the deviation, in the order in which images
    were normalised for calibration: scores are the same to the bit. Resizing and cropping stay outside.

    Args:
        model: as stage deploy wrote it; it stays as it is.
        name: what messages call it.

    Raises:
        UserError: its metadata do not state the preprocessing, or it takes pixels already.
    """
    about = {entry.key: entry.value for entry in model.metadata_props}
    if NORMALISED in about:
        raise UserError(f"{name}: takes pixels already")
    facts = _preprocessing(about, name)
    made = copied(model)
    graph, source = made.graph, made.graph.input[0]
    taken = {text for node in graph.node for text in (*node.input, *node.output)}
    taken |= {item.name for item in (*graph.input, *graph.initializer)}
    first = unique_name(INPUT, taken)
    nodes, constants = _normalisation(first, source.name, facts, unique_name(f"{INPUT}_normalised", taken))
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before])
    graph.initializer.extend(constants)
    channels, height, width = facts.input_size
    batch = copied(source.type.tensor_type.shape.dim[0])
    source.CopyFrom(helper.make_tensor_value_info(first, TensorProto.UINT8, [None, height, width, channels]))
    source.type.tensor_type.shape.dim[0].CopyFrom(batch)
    helper.set_model_props(made, {**about, NORMALISED: "in the graph"})
    return made


def _normalisation(
    first: str, last: str, facts: PreprocessingInfo, stem: str
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes from pixels to the normalised image, and their constants.

    Args:
        first: the tensor that the first node reads.
        last: the tensor that the last node writes.
        stem: how names in between begin.
    """
    nodes = [
        helper.make_node("Transpose", [first], [f"{stem}_0"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{stem}_0"], [f"{stem}_1"], to=TensorProto.FLOAT),
    ]
    constants = []
    for kind, values in (("Div", [255] * len(facts.mean)), ("Sub", facts.mean), ("Div", facts.std)):
        count = len(nodes)
        constant = np.array(values, dtype=np.float32).reshape(1, -1, 1, 1)
        constants.append(numpy_helper.from_array(constant, f"{stem}_{count}_by"))
        nodes.append(helper.make_node(kind, [f"{stem}_{count - 1}", constants[-1].name], [f"{stem}_{count}"]))
    nodes[-1].output[0] = last
    for count, node in enumerate(nodes):
        node.name = f"{stem}_{count}"
    return nodes, constants


def _preprocessing(about: dict[str, str], name: str) -> PreprocessingInfo:
    """What the metadata state."""
    try:
        stated = dict(parsed(about[STATED]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{name}: does not state its preprocessing; give the int8.onnx of a run") from None
    return validate(PreprocessingInfo, stated, name)
