"""Files of weights: the tensors in them by name, or why one cannot be read. No code of theirs ever runs."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import INDEX, shards

State = Mapping[str, Tensor]

ALONE = "save the state dict alone: torch.save(model.state_dict(), FILE)"
DEEPEST = 6  # dictionaries within each other, of training scripts
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
GLOBAL = re.compile(r"(?:GLOBAL|global:?|class:?) ([\w.]+\.[\w.]+)")
ZIP = b"PK\x03\x04"  # the first bytes of an archive, as PyTorch writes
# What a file is, by its suffix, where its first bytes do not tell.
SUFFIXES = {
    ".onnx": "an ONNX model; give `source: onnx:FILE`",
    ".msgpack": "of Flax; bring the weights into timm's names",
    ".index": "of TensorFlow; bring the weights into timm's names",
}
# What a file is, by its first bytes.
STARTS = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; fetch it: git lfs pull",
    b"<": "a web page, not the file; fetch it again",
    b"{": "JSON; the index of several files must be called NAME.index.json",
    b"\x89HDF": "an HDF5 file, as Keras writes; bring the weights into timm's names",
    b"GGUF": "a GGUF file; give the weights from which it was made",
    b"\x93NUMPY": "a NumPy array; give a state dict",
}
# What an archive is, by the name of one of its files.
ARCHIVES = {
    "constants.pkl": "a TorchScript archive; save its state dict, of the model that it was made from",
    "archive_format": "an archive of torch.export; save the state dict of the model that it was made from",
    "serialized_exported_program.json": "an archive of torch.export; save the state dict of its model",
    ".pth": "an archive that holds a .pth file; unpack it",
    ".npy": "NumPy arrays, as JAX's models come; bring the weights into timm's names",
}


def states_in(path: Path) -> dict[str, State]:
    """Every mapping of names to tensors in a file, by the keys that lead to it, each with a dot after it.

    Raises:
        UserError: a file that is not there, not readable, or holds no state dict.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; `checkpoint` names a file of weights, such as one in it")
    if not path.is_file():
        raise UserError(f"{path}: not found; `checkpoint` names a .safetensors or .pth file")
    if path.name.endswith(INDEX):
        return {"": {key: value for shard in shards(path) for key, value in _content(shard).items()}}
    return dict(_states(_content(path), "", set()))


def _states(content: Any, where: str, seen: set[int]) -> Iterator[tuple[str, State]]:
    """Mappings of names to tensors, the outermost first; what else lies beside tensors is no weight.

    A dictionary that stands in several places is looked at once.
    """
    if not isinstance(content, Mapping) or where.count(".") > DEEPEST or id(content) in seen:
        return
    seen.add(id(content))
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in named.items():
        yield from _states(value, f"{where}{key}.", seen)


def _content(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            return load_file(path)
        # Training scripts keep their options beside the weights: names and values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]), quiet("torch"), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)  # by its content, not its suffix
    except Exception as error:  # whatever a broken file makes of PyTorch's reader
        raise UserError(f"{path}: not readable as weights ({_reason(path, error)})") from None


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(ZIP):
        return False  # of PyTorch, under whatever name
    return path.suffix == ".safetensors" or start[4:] == b"\0\0\0\0{"


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, which never is that it should be read with less care."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    for first, what in STARTS.items():
        if start.lstrip().startswith(first):
            return f"it is {what}"
    if zipfile.is_zipfile(path) and not isinstance(error, SafetensorError):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        for name, what in ARCHIVES.items():
            if any(one.endswith(name) for one in names):
                return f"it is {what}"
    if path.suffix in SUFFIXES:
        return f"it is {SUFFIXES[path.suffix]}"
    return plain_text(error)


def plain_text(error: BaseException) -> str:
    """The message of an error, without colours and without PyTorch's advice to load unsafely."""
    text = COLOURS.sub("", str(error)).strip()
    if "weights_only" not in text and "Weights only" not in text:
        return f"{type(error).__name__}: {text}"
    found = GLOBAL.search(text)
    if found:
        return f"it holds {found[1]} beside the weights, which only code could make; {ALONE}"
    return f"it is no plain file of weights, or not whole; {ALONE}"
