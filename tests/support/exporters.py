"""One torch module written as ONNX in the ways of many exporters: `EXPORTERS`, name to function.

Each function takes (module, example input, path) and writes the file; input `images`, output `logits`.
`PLAIN` is the one that the others are compared to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper
from tiny_models import to_onnx
from torch import nn

from ptq2themoon.graph.editing.onnx_graph import Graph, attribute, tensor_shapes
from ptq2themoon.graph.forms.normalise import fold_constants

Exporter = Callable[[nn.Module, torch.Tensor, Path], None]
Rewrite = Callable[[Graph, NodeProto], None]
PLAIN = "torchscript-13"


def with_fused_attention(module: nn.Module, on: bool) -> nn.Module:
    """A copy whose timm attention does or does not call scaled_dot_product_attention."""
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = on
    return module


def torchscript(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    opset: int = 13,
    fused: bool = False,
    free: bool = True,
) -> None:
    module = with_fused_attention(module, fused)
    onnx.save(to_onnx(module, tuple(example.shape), dynamic_batch=free, opset=opset), path)


def dynamo(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    opset: int = 20,
    fused: bool = False,
    free: bool = True,
) -> None:
    module = with_fused_attention(module, fused)
    images = torch.cat([example, example]) if free and len(example) == 1 else example  # 1 is taken as fixed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (images,), None, dynamo=True, opset_version=opset, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if free else None,
        )  # fmt: skip
    onnx.save(program.model_proto, path)


def two_images(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    torchscript(module, torch.cat([example, example]), path, free=False)


def edited(module: nn.Module, example: torch.Tensor, path: Path, edit: Callable[[Graph], None]) -> None:
    """The plain export of one image, constants folded, edited as another program would have written it."""
    torchscript(module, example[:1], path, free=False)
    graph = Graph(fold_constants(onnx.load(path)))
    edit(graph)
    model = graph.finish()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _each(op_type: str, rewrite: Rewrite) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        for node in [node for node in graph.nodes if node.op_type == op_type]:
            rewrite(graph, node)

    return edit


def swap_operands(graph: Graph, node: NodeProto) -> None:
    """A constant first, as transformers writes a bias and a scale."""
    if graph.split_operands(node) is not None and node.input[1] in graph.constants:
        node.input[:] = list(node.input)[::-1]


def square_as_product(graph: Graph, node: NodeProto) -> None:
    if graph.constants[node.input[1]] == 2:
        graph.replace([node], [helper.make_node("Mul", [node.input[0]] * 2, list(node.output), node.name)])


def _is_scale(graph: Graph, node: NodeProto) -> bool:
    """Whether it scales the queries."""
    operands = graph.split_operands(node)
    product = graph.only_consumer(node, "MatMul")
    if operands is None or operands[1].size > 1 or product is None:
        return False
    return not any(name in graph.constants for name in product.input)


def product_as_quotient(graph: Graph, node: NodeProto) -> None:
    """The queries divided by the scale's inverse."""
    if _is_scale(graph, node):
        x, value = graph.split_operands(node)
        inverse = graph.add_constant(f"{node.name}/inverse", 1 / value)
        graph.replace([node], [helper.make_node("Div", [x, inverse], list(node.output), node.name)])


def scale_of_scores(graph: Graph, node: NodeProto) -> None:
    """The scores divided, not the queries multiplied."""
    if not _is_scale(graph, node):
        return
    x, value = graph.split_operands(node)
    (scores,) = graph.consumers(node.output[0])
    graph.rename_uses(node.output[0], x)
    raw, out = graph.free_tensor("raw"), scores.output[0]
    inverse = graph.add_constant(f"{node.name}/inverse", 1 / value)
    scores.output[0] = raw
    graph.replace([node], [])
    graph.replace([scores], [scores, helper.make_node("Div", [raw, inverse], [out], f"{node.name}/Div")])


def gemm_between_reshapes(graph: Graph, matmul: NodeProto, transposed: bool = False, flat: int = -1) -> None:
    """As onnxslim writes MatMul and Add: tokens of all images in one matrix."""
    add = graph.only_consumer(matmul, "Add")
    if add is None or graph.split_operands(add) is None or matmul.input[1] not in graph.constants:
        return
    weight, (_, bias) = graph.constants[matmul.input[1]], graph.split_operands(add)
    shape = tensor_shapes(graph.finish())[matmul.input[0]]
    out = add.output[0]

    def constant(name: str, value: np.ndarray) -> str:
        return graph.add_constant(f"{out}/{name}", value)

    matrix, product = graph.free_tensor(f"{out}/matrix"), graph.free_tensor(f"{out}/gemm")
    inputs = [matrix, constant("kernel", np.ascontiguousarray(weight.T) if transposed else weight)]
    rows = constant("rows", np.array([flat, weight.shape[0]]))
    back = constant("back", np.array([*shape[:-1], weight.shape[1]]))
    new = [
        helper.make_node("Reshape", [matmul.input[0], rows], [matrix], f"{matmul.name}_rows"),
        helper.make_node(
            "Gemm", [*inputs, constant("shift", bias)], [product], f"{matmul.name}_gemm",
            alpha=1.0, beta=1.0, transB=int(transposed),
        ),
        helper.make_node("Reshape", [product, back], [out], f"{matmul.name}_back"),
    ]  # fmt: skip
    graph.replace([matmul, add], new)


def gemm_as_matmul(graph: Graph, gemm: NodeProto) -> None:
    """The classifier as MatMul and Add."""
    weight = graph.constants[gemm.input[1]]
    kernel = graph.add_constant(f"{gemm.name}/kernel", weight.T if attribute(gemm, "transB") else weight)
    product = graph.free_tensor(f"{gemm.name}/product")
    new = [
        helper.make_node("MatMul", [gemm.input[0], kernel], [product], f"{gemm.name}/MatMul"),
        helper.make_node("Add", [gemm.input[2], product], list(gemm.output), f"{gemm.name}/Add"),
    ]
    graph.replace([gemm], new)


def constants_as_nodes(graph: Graph) -> None:
    nodes = [
        helper.make_node("Constant", [], [name], f"constant_{i}", value=onnx.numpy_helper.from_array(value))
        for i, (name, value) in enumerate(graph.constants.items())
    ]
    graph.nodes = [*nodes, *graph.nodes]
    graph.constants.clear()


def many_at_once(graph: Graph) -> None:
    """What a simplified transformers graph looks like."""
    for op_type, rewrite in (
        ("Mul", scale_of_scores),
        ("Pow", square_as_product),
        ("Gemm", gemm_as_matmul),
        ("MatMul", partial(gemm_between_reshapes, transposed=True)),
        ("Add", swap_operands),
        ("Mul", swap_operands),
    ):
        _each(op_type, rewrite)(graph)
    for i, node in enumerate(graph.nodes):
        node.name = f"node_{i}"
    constants_as_nodes(graph)


EDITS: dict[str, Callable[[Graph], None]] = {
    "bias-first": _each("Add", swap_operands),
    "square-as-product": _each("Pow", square_as_product),
    "scale-as-quotient": _each("Mul", product_as_quotient),
    "scale-of-scores": _each("Mul", scale_of_scores),
    "gemm": _each("MatMul", gemm_between_reshapes),
    "gemm-transposed": _each("MatMul", partial(gemm_between_reshapes, transposed=True)),
    "head-as-matmul": _each("Gemm", gemm_as_matmul),
    "constants-as-nodes": constants_as_nodes,
    "many-at-once": many_at_once,
}

EXPORTERS: dict[str, Exporter] = {
    PLAIN: torchscript,
    "torchscript-14": partial(torchscript, opset=14),
    "torchscript-17": partial(torchscript, opset=17),
    "torchscript-one-image": partial(torchscript, free=False),
    "torchscript-two-images": two_images,
    "torchscript-14-fused-attention": partial(torchscript, opset=14, fused=True),
    "torchscript-17-fused-attention": partial(torchscript, opset=17, fused=True),
    "dynamo-18": partial(dynamo, opset=18),
    "dynamo-19": partial(dynamo, opset=19),
    "dynamo-20": dynamo,
    "dynamo-one-image": partial(dynamo, free=False),
    "dynamo-18-fused-attention": partial(dynamo, opset=18, fused=True),
    "dynamo-20-fused-attention": partial(dynamo, fused=True),
    **{name: partial(edited, edit=edit) for name, edit in EDITS.items()},
}
