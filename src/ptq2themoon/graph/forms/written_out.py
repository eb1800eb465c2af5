"""Fused operators of a model written out as plain ones, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import NodeProto, defs, helper, inliner

from ptq2themoon.graph.editing.one_message import by_outline
from ptq2themoon.graph.editing.onnx_graph import STANDARD_DOMAINS, Graph, copied, tensor_shapes
from ptq2themoon.graph.forms.fused_operators import NEED_RANKS, NEWER, RUNTIME, TERMS, Write
from ptq2themoon.graph.forms.plain_writer import PlainWriter, UnknownForm
from ptq2themoon.graph.forms.support import MICROSOFT, opset_of, place
from ptq2themoon.ppq_operators import runs
from ptq2themoon.vocabulary.errors import UserError

OF_SOFTMAX = "ReduceLogSumExp"  # a part of one, as it may be written, which is looked for later


def write_out_newer(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model with each operator that ONNX has only after `opset` as plain ones.

    Raises:
        UserError: one of them in a form that is not known, and where it stands.
    """
    found = opset_of(model)
    if found <= opset:
        return model
    model = _written_out(model, lambda node: node.domain in STANDARD_DOMAINS and node.op_type in NEWER, NEWER)
    return _by_definition(model, lambda kind: defs.has(kind, found) and not defs.has(kind, opset))


def write_out_defined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with operators of many terms as sums, and with those that PPQ lacks as ONNX defines them."""
    model = _written_out(model, lambda node: node.domain in STANDARD_DOMAINS and node.op_type in TERMS, TERMS)
    return _by_definition(model, lambda kind: not runs(kind) and kind != OF_SOFTMAX)


def _by_definition(model: onnx.ModelProto, wanted: Callable[[str], bool]) -> onnx.ModelProto:
    """The model with its wanted types written out where ONNX brings a definition; others stay."""
    opset = opset_of(model)
    kinds = {node.op_type for node in model.graph.node if node.domain in STANDARD_DOMAINS}
    schemas = [
        defs.get_schema(kind, opset) for kind in sorted(kinds) if wanted(kind) and defs.has(kind, opset)
    ]
    defined = [schema for schema in schemas if _has_definition(schema)]
    if not defined:
        return model
    inlined = by_outline(model, lambda light: _inlined(light, defined))
    return _by_definition(inlined, wanted)  # a definition may have others in it


def _inlined(model: onnx.ModelProto, schemas: list[defs.OpSchema]) -> onnx.ModelProto:
    typed = copied(model)
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    for schema in schemas:  # a definition leaves out what an operator does not state
        usual = [item.default_value for item in schema.attributes.values() if item.default_value.name]
        for node in (node for node in typed.graph.node if node.op_type == schema.name):
            stated = {item.name for item in node.attribute}
            node.attribute.extend(item for item in usual if item.name not in stated)
    names = [("", schema.name) for schema in schemas]
    return inliner.inline_selected_functions(typed, names, inline_schema_functions=True)


def _has_definition(schema: defs.OpSchema) -> bool:
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def write_out_runtime(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, of an opset that has Gelu, with the operators of ONNX Runtime's optimisers as plain ones.

    Raises:
        UserError: one of them in a form that is not known, and where it stands.
    """
    return _written_out(model, can_write_out, RUNTIME)


def can_write_out(node: NodeProto) -> bool:
    """Whether it is an operator of ONNX Runtime's optimisers that is known here."""
    return node.domain == MICROSOFT and node.op_type in RUNTIME


def _written_out(
    model: onnx.ModelProto, wanted: Callable[[NodeProto], bool], writers: Mapping[str, Write]
) -> onnx.ModelProto:
    while True:
        graph = Graph(model)
        left = [node for node in graph.nodes if wanted(node)]
        if not left:
            return model
        shapes, progress = tensor_shapes(model), False
        for node in left:
            if node.op_type in NEED_RANKS and not all(name in shapes for name in node.input[:3] if name):
                continue  # until what makes it is written out
            writer = PlainWriter(graph, node, shapes)
            try:
                writers[node.op_type](writer, node)
            except UnknownForm as error:
                raise UserError(
                    f"{place(graph, node)}: {error}; export the model with plain operators"
                ) from None
            graph.replace([node], writer.nodes)
            progress = True
        if not progress:
            raise UserError(
                f"{place(graph, left[0])}: the shape of what it reads is not known; "
                "export the model with plain operators"
            )
        model = graph.finish()
