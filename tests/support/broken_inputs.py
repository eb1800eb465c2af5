"""Broken inputs by chance: parameter files, recipes, ONNX files, folders of images; and what reads each."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from hypothesis import strategies as st
from onnx import NodeProto
from PIL import Image
from tiny_images import picture, preprocessing
from tiny_models import tiny_module, to_onnx

from ptq2themoon.data import list_evaluation, open_source
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.sources.exporting import export
from ptq2themoon.graph.sources.onnx_files import one_line, read_graph
from ptq2themoon.vocabulary.model_source import Source
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
ODD = [
    "", "~", "0x_", "0b2", "2024-99-99", "1:60:61", "-1", "0", "1e400", ".nan", ".inf", "9" * 40, "true",
    "[" * 70 + "]" * 70, "*a", "&a [*a]", "!!int x", "!!python/name:os.system", "!!binary =", "!!set {a}",
    "'$(touch ran)'", "../..", "'a b'", r'"\0"', r'"\uD800"', r'"\UFFFFFFFF"', r'"\e[31m\n"', "{a: {b: [1]}}",
    "__use_yte__", "[w8a8, w8a8]", "x" * 5000, "=1+1", "$x_{$", "\t", "a: b: c", "|", "? a", "---", "...",
    "%YAML 1.1", "<<: *a", "- 1", "[1, 2, 3]", "fc2", "w4a4", "minmax", "per-channel", "demo", "vanilla",
]  # fmt: skip
BASES = ("vanilla", "layernorm")  # recipes beside the one that is read
# Every section, and few recipes: each that is named is read too.
PARAMETERS = """\
models:
  demo: {source: "local-dir:resources/demo/model", dataset: demo, opset: 13, classifier: true}
  other:
    source: local-dir:resources/demo/model
    dataset: demo
    arguments: {img_size: 28}
    preprocessing: {mean: [0.5], std: [0.5], crop_pct: 0.9, input_size: [1, 28, 28]}
datasets:
  demo:
    kind: arrays
    calibration: resources/demo/calibration.safetensors
    evaluation: resources/demo/evaluation.safetensors
recipes: [vanilla]
bits: [w8a8, w4a8]
calibration: {images: 256, batch_size: 32, seeds: [0]}
evaluation: {images: 2000, batch_size: 25}
errors: {images: 64, logits_images: 32}
attention: {images: 4, block: -1}
deploy: {modes: [faithful, fast]}
plots:
  dpi: 150
  colormap: viridis
benchmark: {recipes: [vanilla], images: 32, batches: [1, 8]}
study:
  recipes: [vanilla]
  bits: [w8a8, w4a4]
  loss: 5.0
leaderboard:
  recipes: [vanilla]
  bases: [vanilla]
  bits_of: {vanilla: [w8a8]}
data_free:
  sources: {real: vanilla}
learning_curve:
  recipes: [vanilla]
  iterations: [0, 10]
device: auto
"""
NUMBERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 16, 17, 1000, 10**6, 10**9, 2**31, 2**40, 2**62]
TYPES = [
    "Loop", "If", "Scan", "ConstantOfShape", "Range", "Expand", "Tile", "Resize", "NonZero", "OneHot",
    "Shape", "Softmax", "MatMul", "Gemm", "Add", "Concat", "Split", "Gather", "Reshape", "Transpose",
    "Einsum", "Pad", "LayerNormalization", "Cast", "Identity", "Constant", "TopK", "Slice", "Nothing", "",
]  # fmt: skip
NAMES = ["a", "b", "=1", "a b", "$x_{$", "-r", "<b>", "é", "\udcff", ".hidden", "1", "10", "ü\n", "n01440764"]
SUFFIXES = [".png", ".jpg", ".PNG", ".txt", "", ".heic", ".csv"]


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        inputs: strategy of contents.
        read: what a content makes of the reader, given a folder of its own; raises `UserError`, or ends well.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]


# YAML -------------------------------------------------------------------------------------------------


@st.composite
def texts(draw: st.DrawFn, seeds: tuple[str, ...]) -> bytes:
    """One of the files, with a few lines changed and perhaps some bytes."""
    lines = draw(st.sampled_from(seeds)).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1)) if lines else 0
        lines[place : place + 1] = _changed(draw, lines[place] if lines else "")
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)):
        return content
    return _with_bytes(draw, content)


def _changed(draw: st.DrawFn, line: str) -> list[str]:
    how, odd = draw(st.integers(0, 6)), draw(st.sampled_from(ODD))
    key, colon, _ = line.partition(":")
    if how == 0:
        return []
    if how == 1:
        return [line, line]
    if how == 2:
        return [f"  {line}"]
    if how == 3:
        return [odd, line]
    if how == 4:
        return [line[: draw(st.integers(0, len(line)))]]
    if how == 5:
        return [f"{odd}:{line.partition(':')[2]}"]
    return [f"{key}{colon} {odd}"]


def _with_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    return content[:start] + draw(st.binary(max_size=8)) + content[start + draw(st.integers(0, 8)) :]


def _parameters(content: bytes, folder: Path) -> object:
    path = folder / "params.yaml"
    path.write_bytes(content)
    return Params.from_mapping(read_yaml(path), "params.yaml", ROOT / "recipes")


def _recipes() -> tuple[str, ...]:
    """Those that extend none, or one that lies beside what is read."""
    found = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    bases = "|".join(BASES)
    return tuple(
        text for text in found if re.search(rf"^(defaults:|extends: ({bases})\b)", text, re.MULTILINE)
    )


def _recipe(content: bytes, folder: Path) -> object:
    path = folder / "mine.yaml"
    path.write_bytes(content)
    for base in BASES:
        shutil.copyfile(ROOT / f"recipes/{base}.yaml", folder / f"{base}.yaml")
    return load_recipe(path, [(8, 8), (3, 4)])


# ONNX -------------------------------------------------------------------------------------------------


@cache
def _model() -> onnx.ModelProto:
    return to_onnx(tiny_module(depth=1, embed_dim=8))


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """A small transformer with a few operators, constants or statements changed, and perhaps some bytes."""
    model = onnx.ModelProto()
    model.CopyFrom(_model())
    for _ in range(draw(st.integers(1, 3))):
        draw(st.sampled_from([_node, _node, _constant, _statement]))(draw, model.graph, model)
    content = model.SerializeToString()
    return content if draw(st.integers(0, 4)) else _with_bytes(draw, content)


def _node(draw: st.DrawFn, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    if not graph.node:
        return
    place = draw(st.integers(0, len(graph.node) - 1))
    node, how = graph.node[place], draw(st.integers(0, 5))
    tensors = [name for other in graph.node for name in other.output] + [t.name for t in graph.initializer]
    if how == 0:
        del graph.node[place]
    elif how == 1:
        graph.node.append(_copy(node))
    elif how == 2 and node.input:
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from([*tensors, "", "none"]))
    elif how == 3:
        node.op_type = draw(st.sampled_from(TYPES))
    elif how == 4 and node.attribute:
        item = node.attribute[draw(st.integers(0, len(node.attribute) - 1))]
        item.i = draw(st.sampled_from(NUMBERS))
        item.ints[:] = [draw(st.sampled_from(NUMBERS)) for _ in item.ints]
    else:
        node.name = draw(st.sampled_from(["", "=1+1", "<script>", "$x_{$", "a\nb"]))


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _constant(draw: st.DrawFn, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    tensors = [
        *graph.initializer,
        *(item.t for node in graph.node for item in node.attribute if item.HasField("t")),
    ]
    if not tensors:
        return
    tensor, how = draw(st.sampled_from(tensors)), draw(st.integers(0, 4))
    number = draw(st.sampled_from(NUMBERS))
    if how == 0:
        tensor.dims[:] = [*tensor.dims[1:], number]
    elif how == 1:
        tensor.data_type = draw(st.integers(0, 30))
    elif how == 2:
        tensor.raw_data = _with_bytes(draw, tensor.raw_data)
    elif how == 3 and tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data:
        tensor.raw_data = number.to_bytes(8, "little", signed=True) * (len(tensor.raw_data) // 8)
    else:
        tensor.raw_data = draw(st.sampled_from([b"\xff", b"\0"])) * len(tensor.raw_data)


def _statement(draw: st.DrawFn, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    how, number = draw(st.integers(0, 5)), draw(st.sampled_from(NUMBERS))
    value = draw(st.sampled_from([*graph.input, *graph.output]))
    dims = value.type.tensor_type.shape.dim
    if how == 0 and dims:
        dims[draw(st.integers(0, len(dims) - 1))].dim_value = number
    elif how == 1:
        value.type.tensor_type.elem_type = draw(st.integers(0, 30))
    elif how == 2:
        value.ClearField("type")
    elif how == 3:
        graph.ClearField(draw(st.sampled_from(["output", "input", "initializer", "node", "name"])))
    elif how == 4:
        model.opset_import[0].version = number
    else:
        model.ir_version = number


def _onnx(content: bytes, folder: Path) -> object:
    path, out = folder / "mine.onnx", folder / "model.onnx"
    path.write_bytes(content)
    spec = Source(f"onnx:{path}", preprocessing={"mean": [0.5], "std": [0.5]})
    export(spec, "torchscript", 13, out)
    with one_line(path):
        return fuse(normalise(read_graph(out)))


# Images -----------------------------------------------------------------------------------------------


FORMS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("PNG", "RGB", {}), ("PNG", "I;16", {}), ("PNG", "P", {}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}), ("GIF", "P", {}), ("BMP", "RGB", {}), ("PPM", "RGB", {}),
    ("TIFF", "RGB", {}), ("TIFF", "L", {"compression": "tiff_lzw"}), ("WEBP", "RGB", {}), ("AVIF", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}), ("JPEG2000", "RGB", {}),
)  # fmt: skip


@cache
def pictures() -> tuple[bytes, ...]:
    """Of each form a small one."""
    found = []
    for form, mode, options in FORMS:
        buffer = BytesIO()
        image = Image.new("I;16", (9, 7)) if mode == "I;16" else picture(0, 9, 7).convert(mode)
        image.save(buffer, form, **options)
        found.append(buffer.getvalue())
    return tuple(found)


_names = st.builds(str.__add__, st.sampled_from(NAMES), st.sampled_from(SUFFIXES))
_whats = st.sampled_from(["picture", "cut", "changed", "changed", "pipe", "link", "loop", "empty", "text"])
# A place in a file, and what comes to stand there.
_changes = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["ff", "00", "ffffffff", "7fffffff", "01000000"]))
)
# (folder in it, name, what it is, which picture, where it is cut, what is changed) of each entry.
entries = st.lists(
    st.tuples(
        st.sampled_from(["", "class", "some/class", "20"]),  # none is in NAMES: a file can't hold others
        _names,
        _whats,
        st.integers(0, len(FORMS) - 1),
        st.integers(0, 200),
        _changes,
    ),
    min_size=1,
    max_size=6,
)
# Lines of a table beside them.
tables = st.none() | st.lists(
    st.sampled_from(["path,label", "label,path", "path", "path;label"])
    | st.builds(
        lambda name, label: f"{name},{label}",
        _names | st.sampled_from(["../x.png", "/etc/passwd", "a/a.png", '"', "\0", "x" * 9000]),
        st.sampled_from(["0", "1", "-1", "9" * 31, "", " 2", "\u0665", "1.5", '"']),
    ),
    max_size=5,
)


def _images(content: tuple[Any, list[str] | None], folder: Path) -> object:
    found, table = content
    root = folder / "images"
    for place, name, what, which, cut, changes in found:
        path = root / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            _make(path, what, pictures()[which], cut, changes)
    kind = "folder"
    if table is not None:
        (root / "list.csv").unlink(missing_ok=True)
        (root / "list.csv").write_bytes("\n".join(table).encode("utf-8", "surrogateescape"))
        kind, root = "csv", root / "list.csv"
    source = open_source(kind, root)
    rows, _ = list_evaluation(source, None, None, 1, preprocessing(3, 8))
    return [source.pixels(row.source, preprocessing(3, 8)) for row in rows[:1]]


def _make(path: Path, what: str, content: bytes, cut: int, changes: list[tuple[int, str]]) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what in ("link", "loop"):
        path.symlink_to(path.name if what == "loop" else "..")
    else:
        instead = {"cut": content[:cut], "empty": b"", "text": b"path,label\n"}
        content = instead.get(what, content)
        for place, put in changes if what == "changed" else ():
            new, place = bytes.fromhex(put), place % len(content)
            content = content[:place] + new + content[place + len(new) :]
        path.write_bytes(content)


KINDS = {
    "parameters": Kind(texts((PARAMETERS,)), _parameters),
    "recipes": Kind(texts(_recipes()), _recipe),
    "onnx": Kind(models(), _onnx),
    "images": Kind(st.tuples(entries, tables), _images),
}
