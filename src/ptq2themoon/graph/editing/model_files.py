"""A model in memory as an ONNX file, with its weights in a file beside it where one cannot hold both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto

from ptq2themoon.graph.editing.one_message import copied_without, fits_one_message, is_large
from ptq2themoon.vocabulary.onnx_data import check_data, data_beside, new_sum, written_data

ALIGNED = 4096  # bytes: runtimes map a constant that begins on a page, and do not copy it


def write_model(model: onnx.ModelProto, path: Path, name: str | None = None) -> None:
    """Write a model as one file, or where its weights are too many for one, as `path` and `path`.data.

    The data come first, and the ONNX file states their sum: its own content tells what belongs to it.

    Args:
        name: that the ONNX file will have once it is renamed, its data likewise.
    """
    with _replaced(path):
        if fits_one_message(model):
            onnx.save(model, path)
        else:
            called = data_beside(path.with_name(name or path.name)).name
            path.write_bytes(_with_data_in(model, data_beside(path), called).SerializeToString())


def copy_model(path: Path, out: Path) -> None:
    """Copy an ONNX file with the data that were written with it, under a name that goes with the copy's."""
    check_data(path)
    with _replaced(out):
        if not written_data(path):
            shutil.copy(path, out)
            return
        shutil.copy(data_beside(path), data_beside(out))
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data_beside(out).name
        out.write_bytes(model.SerializeToString())


@contextmanager
def _replaced(path: Path) -> Iterator[None]:
    """Once another file stands there, without the data of the one before."""
    before = written_data(path)
    yield
    for data in before:
        if not written_data(path):
            data.unlink(missing_ok=True)


def _with_data_in(model: onnx.ModelProto, data: Path, name: str) -> onnx.ModelProto:
    """Write the weights to `data`, and give the model without them, which calls that file `name`."""
    light, whole, outside = copied_without(model, "initializer"), new_sum(), []
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            if not (is_large(tensor) and tensor.HasField("raw_data")):
                light.graph.initializer.append(tensor)
                continue
            content = tensor.raw_data
            for part in (bytes(-file.tell() % ALIGNED), content):
                file.write(part)
                whole.update(part)
            new = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            new.data_location = TensorProto.EXTERNAL
            _say(new, location=name, offset=str(file.tell() - len(content)), length=str(len(content)))
            outside.append(new)
    for tensor in outside:
        _say(tensor, checksum=whole.hexdigest())
    return light


def _say(tensor: TensorProto, **entries: str) -> None:
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
