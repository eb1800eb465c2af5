"""qparams.json and qparams.safetensors: all that rebuilds a quantized model, in format 2.

What the reader does not know, it refuses: a key, a kind, a version, a value out of range. Nothing in the
files is a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from google.protobuf import json_format  # type: ignore[import-untyped]
from onnx import NodeProto
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq2themoon.graph.meaning.roles import find_roles
from ptq2themoon.quantize.edits import Edits
from ptq2themoon.quantize.integer_arithmetic import described
from ptq2themoon.quantize.integer_arithmetic import read as read_arithmetic
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import KINDS, Quantizer
from ptq2themoon.quantize.tensors import QuantizedOperator, QuantizedTensor
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.recipe_language import Granularity, Observer, Operand, Protocol
from ptq2themoon.vocabulary.records import parsed, write_json
from ptq2themoon.vocabulary.tensor_spec import TensorSpec
from ptq2themoon.vocabulary.validation import Strict, validate

VERSION = 2


class ArrayRef(Strict):
    """Where values lie in the safetensors file."""

    array: str
    shape: list[int]


Number = float | int
Value = Number | ArrayRef


class SlotEntry(Strict):
    """One quantized input or output of an operator."""

    operand: Operand
    position: int = Field(ge=0)
    granularity: Granularity
    observer: Observer
    percentile: float | None
    quantizer: dict[str, Any]
    """kind, bits and axis; the other keys are the kind's own."""


class OperatorEntry(Strict):
    """An operator with its quantized tensors."""

    name: str
    type: str
    role: str | None
    block: int | None
    tensors: list[SlotEntry]
    arithmetic: dict[str, Any] | None = None
    """Kind and settings of integers that it computes on; left out where it computes in floating point."""


class EditsEntry(Strict):
    """Constants with new values, and operators replaced by others (ONNX nodes as protobuf's JSON)."""

    constants: dict[str, ArrayRef]
    nodes: dict[str, list[dict[str, Any]]]


class Header(Strict):
    """What the parameters were made from."""

    recipe: str
    bits: str
    protocol: Protocol
    methods: list[dict[str, Any]]
    calibration_images: int
    graph_sha256: str


class QParamsFile(Header):
    """The content of qparams.json."""

    version: Literal[2] = 2
    rounding: Literal["half-even"] = "half-even"
    rewrite: EditsEntry
    changes: EditsEntry
    operators: list[OperatorEntry]


@dataclass
class QParams:
    """What the two files hold."""

    header: Header
    quantized: list[QuantizedOperator]
    rewrite: Edits
    changes: Edits

    def model(self, reference: onnx.ModelProto) -> QuantizedModel:
        """The quantized model of the graph that the parameters were made for."""
        model = QuantizedModel(reference, [], self.rewrite, self.changes, self.quantized)
        model.operators = find_roles(model.edited)
        return model


def write_qparams(model: QuantizedModel, header: Header, path: Path, arrays_path: Path) -> None:
    """Write `path` (JSON, with the scales that are one number) and `arrays_path` (safetensors, the rest)."""
    arrays: dict[str, Tensor] = {}
    operators = [_operator_entry(item, arrays) for item in model.quantized]
    file = QParamsFile(
        **header.model_dump(),
        rewrite=_edits_entry(model.rewrite, "rewrite", arrays),
        changes=_edits_entry(model.changes, "changes", arrays),
        operators=operators,
    )
    content = file.model_dump()
    for entry in content["operators"]:
        if entry["arithmetic"] is None:
            del entry["arithmetic"]
    write_json(path, {"version": content.pop("version"), **content})
    save_file(arrays, arrays_path)


def read_qparams(path: Path, arrays_path: Path) -> QParams:
    """Read what `write_qparams` wrote.

    Raises:
        UserError: a file of another form or version, or with anything in it that is not known here.
    """
    try:
        arrays = load_file(arrays_path)
    except (OSError, SafetensorError) as error:
        raise _refused(path, f"{arrays_path}: {error}") from None
    try:
        data = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, str(error)) from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else None
        raise _refused(path, f"version {found!r}, not {VERSION}")
    try:
        file = validate(QParamsFile, data, str(path))
    except UserError as error:
        raise UserError(f"{str(error).splitlines()[0]}; calibrate again") from None
    header = Header(**{name: getattr(file, name) for name in Header.model_fields})
    operators = []
    for number, entry in enumerate(file.operators):
        try:
            operators.append(_operator(entry, arrays))
        except ValueError as error:
            raise UserError(
                f"{path}: operators[{number}] ({entry.name!r}), {error}; calibrate again"
            ) from None
    try:
        return QParams(header, operators, _edits(file.rewrite, arrays), _edits(file.changes, arrays))
    except ValueError as error:
        raise _refused(path, str(error)) from None


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not quantization parameters of ptq2themoon ({reason}); calibrate again")


def _operator_entry(item: QuantizedOperator, arrays: dict[str, Tensor]) -> OperatorEntry:
    tensors = []
    for tensor in item.tensors:
        quantizer = tensor.ready()
        values: dict[str, Any] = {"kind": quantizer.kind, "bits": quantizer.bits, "axis": quantizer.axis}
        values |= quantizer.settings()
        for name, array in quantizer.arrays().items():
            key = f"{item.operator.name}.{tensor.operand}.{tensor.position}.{name}"
            if array.ndim:
                arrays[key] = array.clone()  # safetensors refuses shared memory
                values[name] = {"array": key, "shape": list(array.shape)}
            else:
                values[name] = array.item()  # float32 to JSON's double and back is exact
        tensors.append(
            SlotEntry(
                operand=tensor.operand,
                position=tensor.position,
                granularity=tensor.granularity,
                observer=tensor.spec.observer,
                percentile=tensor.spec.percentile if tensor.spec.observer == "percentile" else None,
                quantizer=values,
            )
        )
    arithmetic = None if item.arithmetic is None else described(item.arithmetic)
    return OperatorEntry(**item.operator._asdict(), tensors=tensors, arithmetic=arithmetic)


def _operator(entry: OperatorEntry, arrays: Mapping[str, Tensor]) -> QuantizedOperator:
    tensors = []
    for slot in entry.tensors:
        try:
            quantizer = _quantizer(slot.quantizer, arrays)
        except (ValueError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{slot.operand} {slot.position}: {what}") from None
        if (slot.granularity == "per-tensor") != (quantizer.axis is None):
            raise ValueError(f"{slot.operand} {slot.position}: {slot.granularity} with axis {quantizer.axis}")
        spec = _spec(slot, quantizer)
        tensors.append(QuantizedTensor(slot.operand, slot.position, spec, quantizer.axis, quantizer))
    arithmetic = None if entry.arithmetic is None else read_arithmetic(entry.arithmetic)
    return QuantizedOperator(Operator(entry.name, entry.type, entry.role, entry.block), tensors, arithmetic)


def _quantizer(values: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Quantizer:
    rest = dict(values)
    kind, bits, axis = rest.pop("kind"), rest.pop("bits"), rest.pop("axis")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {nearest(str(kind), list(KINDS))}")
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits {bits!r}: must be 2 to 16")
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
        raise ValueError(f"axis {axis!r}: must be a number from 0 or null")
    names = KINDS[kind].array_names
    found = {name: _array(rest.pop(name), arrays) for name in names}
    if any(array.ndim > (axis is not None) for array in found.values()):
        raise ValueError(f"several values of {' or '.join(names)}, but axis {axis}")
    if axis is not None and not found["scale"].ndim:
        raise ValueError(f"one scale, but axis {axis}")
    return KINDS[kind].from_settings(bits, axis, rest, found)


def _array(value: Any, arrays: Mapping[str, Tensor]) -> Tensor:
    if isinstance(value, dict):
        try:
            reference = validate(ArrayRef, value, "array")
        except UserError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        if reference.array not in arrays:
            raise ValueError(f"array {reference.array!r} is not in the safetensors file")
        array = arrays[reference.array]
        if list(array.shape) != reference.shape:
            raise ValueError(f"array {reference.array!r} is {list(array.shape)}, not {reference.shape}")
        return array
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return torch.tensor(value, dtype=torch.float32)


def _spec(slot: SlotEntry, quantizer: Quantizer) -> TensorSpec:
    """As far as files tell: where a scale came from is known, the weights' axis is in the quantizer."""
    signed = quantizer.settings().get("quant_min", 0) < 0
    zero_point = quantizer.arrays().get("zero_point")
    return TensorSpec(
        quantize=True,
        bits=quantizer.bits,
        granularity=slot.granularity,
        observer=slot.observer,
        percentile=slot.percentile if slot.percentile is not None else 100.0,
        weight_axis="input",
        kind=quantizer.kind,
        symmetry="symmetric" if zero_point is None or not bool(zero_point.any()) else "asymmetric",
        codes="signed" if signed else "unsigned",
    )


def _edits_entry(edits: Edits, group: str, arrays: dict[str, Tensor]) -> EditsEntry:
    constants = {}
    for name, value in edits.constants.items():
        key = f"{group}/{name}"
        arrays[key] = torch.from_numpy(np.array(value, order="C"))
        constants[name] = ArrayRef(array=key, shape=list(value.shape))
    nodes = {name: [json_format.MessageToDict(node) for node in new] for name, new in edits.nodes.items()}
    return EditsEntry(constants=constants, nodes=nodes)


def _edits(entry: EditsEntry, arrays: Mapping[str, Tensor]) -> Edits:
    constants = {name: _array(ref.model_dump(), arrays).numpy() for name, ref in entry.constants.items()}
    return Edits(constants, {name: _nodes(new) for name, new in entry.nodes.items()})


def _nodes(entries: Sequence[Mapping[str, Any]]) -> list[NodeProto]:
    try:
        return [json_format.ParseDict(dict(entry), NodeProto()) for entry in entries]
    except json_format.ParseError as error:
        raise ValueError(" ".join(str(error).split())) from None
