"""Someone else's ONNX file as a source: what it must be, and the little that is changed in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto

from ptq2themoon.graph.editing.onnx_graph import (
    STANDARD_DOMAINS,
    all_nodes,
    attribute,
    copied,
    inline_functions,
    live_nodes,
)
from ptq2themoon.graph.forms.written_out import can_write_out
from ptq2themoon.graph.sources.bounds import refuse_growing, refuse_large, refuse_sizes_of_values
from ptq2themoon.graph.sources.channels_last import take_channels_first
from ptq2themoon.graph.sources.endings import refuse_choices, say_outputs, to_logits, to_rows
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.graph.sources.repairs import repaired
from ptq2themoon.graph.sources.training import refuse_training
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.model_info import LONGEST_SIDE, READABLE_CHANNELS
from ptq2themoon.vocabulary.model_source import Source, check_channels, of_each_channel

INTEGER = ("ConvInteger", "MatMulInteger", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
NARROW = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
DEFAULTS = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}


@dataclass(frozen=True)
class Foreign:
    """An ONNX file's model: `original` as read, but for outputs that are left out; `model` to be written.

    Attributes:
        input_size: (channels, height, width) of the images.
        output: name of the output that is kept, the first or the one named `logits`.
        left_out: the other outputs.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    input_size: tuple[int, int, int]
    output: str
    left_out: list[str]


def read_foreign(path: Path, spec: Source) -> Foreign:
    """Read and check a file of any exporter.

    Raises:
        UserError: no ONNX file with its weights inside, not float32, quantized already, with operators
            that are not ONNX's own, or not of one image input [B, C, H, W].
    """
    original = read_graph(path, lambda found: repaired(found, path))
    take_channels_first(original)
    model = inline_functions(original)
    refuse_growing(model, path)
    _check_numbers(model, path)
    _check_operators(model, path)
    refuse_training(model, path)
    image = _image_input(model, path)
    refuse_sizes_of_values(model, image.name, path)
    input_size = _image_size(image, path, spec)
    _check_preprocessing(spec, input_size)
    output, *left_out = _outputs(model, spec, path)
    model = copied(model)
    for each in (original, model):
        _keep_output(each, output)
    refuse_choices(model, output, path)
    for change in (to_logits, to_rows) if spec.classifier else ():
        said = [change(each, output, path) for each in (original, model)]
        if any(said):
            warn(f"{said[-1]}")
    say_outputs(output, left_out, path)
    original.graph.output[0].type.tensor_type.ClearField("shape")  # ONNX Runtime computes it
    _state_input(model, image.name, input_size)
    refuse_large(model, path)
    return Foreign(original, model, input_size, output, left_out)


def onnx_facts(foreign: Foreign, path: Path, spec: Source) -> dict[str, Any]:
    """What model.json says of an ONNX file besides its outputs."""
    model = foreign.original
    size = list(foreign.input_size)
    values = {**DEFAULTS, **spec.preprocessing, "input_size": size}
    return {
        "architecture": None,
        "weights": {"file": path.as_posix()},
        "producer": f"{model.producer_name} {model.producer_version}".strip() or None,
        "exporter": "onnx file",
        "opset": next(item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS),
        "input_size": size,
        "parameters": _parameters(foreign.model),
        "output_name": foreign.output,
        "other_outputs": foreign.left_out,
        "preprocessing": of_each_channel(values, size[0]),
        "label_names": None,
    }


def _called(node: NodeProto) -> str:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{name} {node.name!r}" if node.name else name


def _check_numbers(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what is quantized already, and what is not float32."""
    nodes = list(all_nodes(model.graph.node))
    integer = [n for n in nodes if n.op_type in INTEGER or n.op_type.startswith(("QLinear", "QGemm"))]
    if integer:
        raise UserError(
            f"{path}: is quantized already ({len(integer)} integer operators, as {_called(integer[0])}); "
            "give the float32 model that it was made from"
        )
    tensors = [*model.graph.initializer, *(item.t for node in nodes for item in node.attribute)]
    for tensor in tensors:
        if tensor.data_type in NARROW:
            kind, name = NARROW[tensor.data_type], tensor.name or "of a Constant operator"
            raise UserError(f"{path}: constant {name!r} is {kind}; export the model in float32")
    for node in nodes:
        if node.op_type == "Cast" and attribute(node, "to") in NARROW:
            kind = NARROW[attribute(node, "to")]
            raise UserError(f"{path}: operator {_called(node)} makes {kind}; export the model in float32")


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    custom = [
        node
        for node in all_nodes(model.graph.node)
        if node.domain not in STANDARD_DOMAINS and not can_write_out(node)
    ]
    if custom:
        kinds = Counter(f"{node.domain}.{node.op_type}" for node in custom)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        raise UserError(
            f"{path}: operators that are not ONNX's own: {shown} (as {_called(custom[0])}); "
            "export the model again without a runtime's optimisations"
        )


def _image_input(model: onnx.ModelProto, path: Path) -> ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(item.name) for item in inputs) or "none"
        raise UserError(f"{path}: has {len(inputs)} inputs ({names}); one of images is needed")
    (image,) = inputs
    tensor = image.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "no tensor"
    if tensor.elem_type != TensorProto.FLOAT:
        raise UserError(f"{path}: input {image.name!r} is {kind}; images in float32 are needed")
    if len(tensor.shape.dim) != 4:
        raise UserError(
            f"{path}: input {image.name!r} has shape {_shown(image)}; "
            "images [batch, channels, height, width] are needed"
        )
    return image


def _shown(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"[{', '.join(dim.dim_param or str(dim.dim_value or '?') for dim in dims)}]"


def _image_size(image: ValueInfoProto, path: Path, spec: Source) -> tuple[int, int, int]:
    stated = [dim.dim_value for dim in image.type.tensor_type.shape.dim[1:]]
    given = list(spec.preprocessing.get("input_size", stated))
    if not all(given):
        raise UserError(
            f"{path}: input {image.name!r} has shape {_shown(image)}, which leaves the size open; "
            "give `preprocessing: {input_size: [C, H, W]}`"
        )
    if any(here not in (0, there) for here, there in zip(stated, given, strict=True)):
        raise UserError(
            f"{path}: input {image.name!r} has shape {_shown(image)}, preprocessing.input_size is {given}; "
            "leave it out"
        )
    channels, height, width = given
    if channels not in READABLE_CHANNELS:
        last = width in READABLE_CHANNELS
        hint = "export the model with channels before height and width" if last else "1 or 3 can be read"
        raise UserError(
            f"{path}: input {image.name!r} has shape {_shown(image)}: images of {channels} channels; {hint}"
        )
    if not 1 <= min(height, width) <= max(height, width) <= LONGEST_SIDE:
        raise UserError(
            f"{path}: input {image.name!r} has shape {_shown(image)}: images of {height}x{width} pixels; "
            f"1 to {LONGEST_SIDE} on a side can be read"
        )
    return channels, height, width


def _check_preprocessing(spec: Source, input_size: tuple[int, int, int]) -> None:
    where = f"model {spec.source!r}: preprocessing"
    missing = [key for key in ("mean", "std") if key not in spec.preprocessing]
    if missing:
        raise UserError(
            f"{where}: {' and '.join(missing)} missing; an ONNX file does not tell how its images were "
            "normalised: give `preprocessing: {mean: [...], std: [...]}`"
        )
    check_channels(spec.preprocessing, input_size[0], where)


def _outputs(model: onnx.ModelProto, spec: Source, path: Path) -> list[str]:
    """Names of the outputs, the one that counts first."""
    names = [item.name for item in model.graph.output]
    if spec.output is not None:
        if spec.output not in names:
            raise UserError(f"{path}: no output {spec.output!r}; {nearest(spec.output, names)}")
        return sorted(names, key=lambda name: name != spec.output)
    return sorted(names, key=lambda name: name != "logits")


def _keep_output(model: onnx.ModelProto, name: str) -> None:
    """Drop the other outputs, and the operators and constants that only they need."""
    graph = model.graph
    kept, needed = live_nodes(graph.node, [name])
    outputs = [item for item in graph.output if item.name == name]
    for field, values in (("node", kept), ("output", outputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    for i in reversed(range(len(graph.initializer))):  # the others stay in place: a second time is a GB
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def _state_input(model: onnx.ModelProto, name: str, input_size: tuple[int, int, int]) -> None:
    """Constants no more among the inputs, as old files list them; the image's size as numbers."""
    graph = model.graph
    (image,) = [item for item in graph.input if item.name == name]
    dims = image.type.tensor_type.shape.dim
    if not dims[0].dim_value and not dims[0].dim_param:
        dims[0].dim_param = "batch"
    for dim, number in zip(dims[1:], input_size, strict=True):
        dim.dim_value = number
    inputs = [image]
    graph.ClearField("input")
    graph.input.extend(inputs)


def _parameters(model: onnx.ModelProto) -> int:
    """Elements of all floating point constants."""
    tensors = [*model.graph.initializer]
    tensors += [item.t for node in model.graph.node if node.op_type == "Constant" for item in node.attribute]
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == TensorProto.FLOAT)
