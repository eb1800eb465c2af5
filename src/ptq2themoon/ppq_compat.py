"""The only importer of ppq: makes ppq 0.6.6 run on a current Python stack.

ppq 0.6.6 (2023, the last release) fails to import for two reasons: its Caffe parser was generated
by an old protoc, and it imports `onnx.mapping`, which newer onnx no longer has. Stand-ins for
both are installed in `sys.modules` for the time of the import. One operator of its executor is replaced:
its Gelu ignores `approximate`. Nothing else of ppq's numerics is touched;
`tests/test_ppq_numerics.py` holds what we rely on to plain PyTorch and numpy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import onnx
import torch

from ptq2themoon.errors import UserError

SUPPORTED_VERSION = "0.6.6"

_STAND_INS: dict[str, tuple[str, ...]] = {
    "ppq.parser.caffe": ("ppl_caffe_pb2",),
    "ppq.parser.caffe_exporter": (
        "CaffeExporter",
        "PPLDSPCaffeExporter",
        "PPLDSPTICaffeExporter",
        "SNPECaffeExporter",
    ),
    "ppq.parser.caffe_parser": ("CaffeParser",),
}


def _check_version() -> None:
    try:
        found = version("ppq")
    except PackageNotFoundError:
        raise UserError(f"ppq is not installed; install ppq=={SUPPORTED_VERSION} (`make env`)") from None
    if found != SUPPORTED_VERSION:
        raise UserError(f"ppq {found} is installed, ptq2themoon needs {SUPPORTED_VERSION} (`make env`)")


def _onnx_mapping() -> ModuleType:
    """`onnx.mapping` as ppq reads it: the two tables between tensor types and numpy types."""
    module = ModuleType("onnx.mapping")
    types = {
        t: onnx.helper.tensor_dtype_to_np_dtype(t)
        for t in onnx.TensorProto.DataType.values()
        if t != onnx.TensorProto.UNDEFINED
    }
    module.TENSOR_TYPE_TO_NP_TYPE = types  # type: ignore[attr-defined]
    module.NP_TYPE_TO_TENSOR_TYPE = {dtype: t for t, dtype in types.items()}  # type: ignore[attr-defined]
    return module


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Caffe's modules and `onnx.mapping`, only while ppq is being imported."""
    for name, attributes in _STAND_INS.items():
        module = ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    mapping_missing = not hasattr(onnx, "mapping")
    if mapping_missing:
        sys.modules["onnx.mapping"] = onnx.mapping = _onnx_mapping()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if mapping_missing:
            del sys.modules["onnx.mapping"], onnx.mapping  # type: ignore[attr-defined]
        for name in _STAND_INS:
            del sys.modules[name]


_check_version()
# A banner, warnings of invalid escapes, and torch's word on a missing CUDA: not for our users.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
with _stand_ins(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ppq
    from ppq import IR as ir
    from ppq import core, executor, parser
    from ppq.IR.base import opdef
    from ppq.quantization import measure, observer
    from ppq.quantization.observer import TensorObserverFactroy as TensorObserverFactory
    from ppq.quantization.qfunction import PPQuantFunction as fake_quantize


def _gelu(op: ir.Operation, values: list[torch.Tensor], ctx: object = None, **_: object) -> torch.Tensor:
    """ONNX's Gelu, by the error function or tanh; ppq's own knows only the first."""
    (x,) = values
    return torch.nn.functional.gelu(x, approximate=op.attributes.get("approximate", "none"))


for _table in executor.base.OPERATION_FORWARD_TABLE.values():
    _table["Gelu"] = _gelu


def parse(model: onnx.ModelProto) -> ir.BaseGraph:
    """PPQ's graph of an ONNX model in memory; the model stays as it is.

    PPQ's parser reads files alone: what it asks of the module onnx is answered from memory.
    """
    module = sys.modules[parser.OnnxParser.__module__]
    name, shims = "model in memory", {"onnx": _Loaded(model), "is_file_exist": lambda _: True}
    before = {attribute: getattr(module, attribute) for attribute in shims}
    try:
        for attribute, shim in shims.items():
            setattr(module, attribute, shim)
        return parser.OnnxParser().build(name)
    finally:
        for attribute, original in before.items():
            setattr(module, attribute, original)


class _Loaded:
    """`onnx`, as far as PPQ's parser asks it."""

    ModelProto = onnx.ModelProto

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model

    def load(self, _: str) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        return copy


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PPQ indexes tensors with lists, which torch warns of at each call; its result is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)
        yield


def uniform_config(
    bits: int, quant_min: int, quant_max: int, axis: int | None, *, symmetric: bool, observer: str = "minmax"
) -> core.TensorQuantizationConfig:
    """PPQ's configuration of a uniform quantizer that is not yet calibrated.

    Args:
        axis: of the channels that have a scale each; None: per tensor.
    """
    kinds = core.QuantizationProperty
    granularity = kinds.PER_TENSOR if axis is None else kinds.PER_CHANNEL
    symmetry = kinds.SYMMETRICAL if symmetric else kinds.ASYMMETRICAL
    return core.TensorQuantizationConfig(
        policy=core.QuantizationPolicy(symmetry + kinds.LINEAR + granularity),
        rounding=core.RoundingPolicy.ROUND_HALF_EVEN,
        num_of_bits=bits,
        quant_min=quant_min,
        quant_max=quant_max,
        observer_algorithm=observer,
        channel_axis=axis,
        state=core.QuantizationStates.INITIAL,
    )


__all__ = [
    "TensorObserverFactory",
    "core",
    "executor",
    "fake_quantize",
    "ir",
    "measure",
    "observer",
    "opdef",
    "parse",
    "parser",
    "ppq",
    "quiet",
    "uniform_config",
]
