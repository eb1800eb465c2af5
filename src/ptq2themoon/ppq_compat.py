"""The only importer of ppq: makes ppq 0.6.6 run on a current Python stack.

ppq 0.6.6 (2023, the last release) fails to import for two reasons: its Caffe parser was generated
by an old protoc, and it imports `onnx.mapping`, which newer onnx no longer has. Stand-ins for
both are installed in `sys.modules` for the time of the import. One operator of its executor is replaced:
its Gelu ignores `approximate`. Nothing else of ppq's numerics is touched;
`tests/test_ppq_numerics.py` holds what we rely on to plain PyTorch and numpy.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import onnx
import torch

from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary.errors import UserError

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
with _stand_ins(), quiet("torch.utils.cpp_extension", stdout=True):
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


def build_graph(model: onnx.ModelProto) -> ir.BaseGraph:
    """ppq's graph of a model in memory, of which it shares nothing: its own parser wants a file."""
    return _Parser().build_from(model)


class _Parser(parser.OnnxParser):
    def build_from(self, model: onnx.ModelProto) -> ir.BaseGraph:
        """What `OnnxParser.build` does after `onnx.load`."""
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError(f"constant {tensor.name!r} lies outside the model")
        graph = ir.BaseGraph(name=model.graph.name, built_from=core.NetworkFramework.ONNX)
        graph._detail[core.GRAPH_OPSET_ATTRIB] = self.convert_opsets_to_str(model.opset_import)
        graph._detail["ir_version"] = model.ir_version
        standard = (item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        opset = next(standard, core.DEFAULT_OPSET_VERSION)
        names = [node.name or f"generated_name_{place}" for place, node in enumerate(model.graph.node)]
        for name, node in zip(names, model.graph.node, strict=True):
            if name in graph.operations:
                raise KeyError(f"operator {name!r} is there twice")
            graph.operations[name] = ir.Operation(
                name=name,
                op_type=node.op_type,
                attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
                opset=ir.Opset(domain=core.DEFAULT_OPSET_DOMAIN, version=opset),
            )
        self.build_variables(
            graph,
            graph_inputs=[value.name for value in model.graph.input],
            graph_outputs=[value.name for value in model.graph.output],
            op_inputs={n: list(node.input) for n, node in zip(names, model.graph.node, strict=True)},
            op_outputs={n: list(node.output) for n, node in zip(names, model.graph.node, strict=True)},
        )
        # Copies: an array of onnx may look into the model, and ppq computes in place.
        constants = {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}
        self.initialize_params(graph, constants)
        self.de_inplace(graph)
        return self.refine_graph(graph)


for _table in executor.base.OPERATION_FORWARD_TABLE.values():
    _table["Gelu"] = _gelu


# PPQ indexes tensors with lists, which torch warns of at each call; its result is tested.
quiet_ppq = functools.partial(quiet, message="Using a non-tuple sequence")


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
    "build_graph",
    "core",
    "executor",
    "fake_quantize",
    "ir",
    "measure",
    "observer",
    "opdef",
    "parser",
    "ppq",
    "quiet_ppq",
    "uniform_config",
]
