"""Where a model comes from, as params.yaml says it; light enough for checking parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.model_info import Above0, CropMode, CropShare, ImageSize, Interpolation
from ptq2themoon.vocabulary.onnx_data import data_files, size_problem
from ptq2themoon.vocabulary.records import parsed
from ptq2themoon.vocabulary.validation import Strict, shown

INDEX = ".index.json"  # says in which file beside it each tensor lies
CONFIG, LONGEST_CONFIG = "config.json", 1_000_000  # of timm's folder; bytes
LOCAL, HUB, ONNX = "local-dir:", "hf-hub:", "onnx:"
# Of the numbers in `arguments`, which decide how much memory a model takes.
LARGEST, MOST_OF = 16_384, {"num_classes": 1_000_000, "depth": 200, "depths": 200}
Exporter = Literal["torchscript", "dynamo"]
FILE_KINDS = ("arrays", "csv")  # data sets that are one file; of others the listing counts
# What Snakemake replaces in the name of a file that a job reads.
WILDCARD = re.compile(r"\{\s*[.\w]+\s*(,.*?)?\}")
ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)
OPSETS: Mapping[str, tuple[int, int]] = {"torchscript": (11, 17), "dynamo": (18, 20)}


class PreprocessingChanges(Strict):
    """Preprocessing values that replace timm's; for an ONNX file, all preprocessing."""

    mean: Annotated[list[float], Field(min_length=1)] | None = None
    """Mean of each channel, for pixels in 0..1."""
    std: Annotated[list[Above0], Field(min_length=1)] | None = None
    """Standard deviation of each channel, for pixels in 0..1."""
    interpolation: Interpolation | None = None
    """How images are resized."""
    crop_pct: CropShare | None = None
    """Side of the crop divided by the side of the resized image."""
    crop_mode: CropMode | None = None
    """How images that are not square are fitted to the input."""
    input_size: ImageSize | None = None
    """[channels, height, width]."""

    def given(self) -> dict[str, Any]:
        """Only what is set."""
        return self.model_dump(exclude_none=True)


def opset_problem(exporter: Exporter, opset: int) -> str | None:
    """What is wrong with an opset that the exporter does not write."""
    least, most = OPSETS[exporter]
    if least <= opset <= most:
        return None
    return f"{exporter} writes {least} to {most}; nearest valid: {min(max(opset, least), most)}"


def option_problem(path: str) -> str | None:
    """What keeps a path from being a value on a command line."""
    if not path:
        return "is empty; give a file or folder"
    if not path.isprintable():
        return f"{path!r}: holds a character that no line can show; rename the file or folder"
    return f"{path!r} would be taken for an option; write {'./' + path!r}" if path.startswith("-") else None


def name_problem(path: str) -> str | None:
    """What keeps a file from being read by a job."""
    found = WILDCARD.search(path)
    if found:
        return f"{path!r}: Snakemake would put another word in place of {found[0]}; rename the file or folder"
    return option_problem(path)


def source_problem(source: str) -> str | None:
    """What is wrong with a source, as far as names and local files tell."""
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        return None if ON_HUB.fullmatch(name) else f"{source!r}: no name of the hub; write {HUB}NAME@REVISION"
    if source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL))
        config = folder / CONFIG
        if not config.is_file():
            return f"{source!r}: no file {config}"
        try:
            local_config(folder)
        except UserError as error:
            return str(error)
        return next(filter(None, (name_problem(str(path)) for path in Source(source).files())), None)
    if source.startswith(ONNX):
        file = Path(source.removeprefix(ONNX))
        if not file.is_file():
            return f"{source!r}: no file {file}"
        try:
            files = Source(source).files()
        except UserError as error:
            return str(error)
        if problem := size_problem(file):
            return f"{source!r}: {problem}"
        return next(filter(None, (name_problem(str(path)) for path in files)), None)
    if ":" in source:
        prefix = source.partition(":")[0] + ":"
        return f"unknown prefix {prefix!r}; {nearest(prefix, [LOCAL, HUB, ONNX])}"
    if "@" in source:
        name, _, revision = source.partition("@")
        return f"a revision needs the hub's name: {HUB}timm/{name}@{revision}"
    return _timm_problem(source)


@cache
def _timm_problem(name: str) -> str | None:
    import timm  # seconds; only for those who name a timm model

    architecture, _, tag = name.partition(".")
    architectures = timm.list_models()
    if architecture not in architectures:
        return f"unknown timm model {shown(architecture)}; {nearest(architecture, architectures)}"
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        return f"unknown tag in {shown(name)}; {nearest(name, tagged or [architecture])}"
    return None


@dataclass(frozen=True)
class Source:
    """`source` as in params.yaml, and what goes with it.

    Attributes:
        checkpoint: weights that replace the source's own.
        arguments: of timm.create_model.
        preprocessing: values that replace timm's.
        classifier: False when the outputs are features even if they look like logits.
        output: the one to take of an ONNX file's several.
    """

    source: str
    checkpoint: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classifier: bool = True
    output: str | None = None

    @property
    def onnx_file(self) -> Path | None:
        """The ONNX file, if the model is one."""
        return Path(self.source.removeprefix(ONNX)) if self.source.startswith(ONNX) else None

    def files(self) -> list[Path]:
        """The local files that decide the model."""
        if self.onnx_file:
            return [self.onnx_file, *data_files(self.onnx_file)]
        files = [self.checkpoint] if self.checkpoint is not None else []
        if self.checkpoint is not None and self.checkpoint.name.endswith(INDEX):
            files += shards(self.checkpoint)
        folder = Path(self.source.removeprefix(LOCAL))
        if self.source.startswith(LOCAL) and folder.is_dir():
            files += sorted(path for path in folder.iterdir() if path.is_file())
        return files


def shards(index: Path) -> list[Path]:
    """The files of weights that an index names, each of which lies beside it.

    Raises:
        UserError: an index of another form, or a file that is not there.
    """
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(where.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: no index of weights (a JSON object with weight_map)") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {name!r} is no file beside it; put all files of weights there")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not beside it; put all files of weights there")
    return [index.parent / name for name in names]


def local_config(folder: Path) -> dict[str, Any]:
    """What config.json in a folder of timm's says of its model.

    Raises:
        UserError: no JSON object, sizes that no model has, or a file of the folder that is none to read.
    """
    config = folder / CONFIG
    try:
        if config.stat().st_size > LONGEST_CONFIG:
            raise ValueError(f"more than {LONGEST_CONFIG} bytes")
        found = parsed(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: not readable as JSON ({error}); save the model with timm again") from None
    if not isinstance(found, dict) or not isinstance(found.get("model_args") or {}, dict):
        raise UserError(f"{config}: must hold an object, and so must its model_args, as timm saves a model")
    if problem := arguments_problem(found):
        raise UserError(f"{config}: {problem[0]}: {problem[1]}")
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: is a pipe or a device; a folder of weights holds files alone")
    return found


def arguments_problem(arguments: Any, key: str = "") -> tuple[str, str] | None:
    """(key, what is wrong there) of sizes that no model has: a model of them would fill the memory."""
    if isinstance(arguments, Mapping):
        parts = [(f"{key}.{name}" if key else name, value) for name, value in arguments.items()]
        return next(filter(None, (arguments_problem(value, name) for name, value in parts)), None)
    if isinstance(arguments, list):
        return next(filter(None, (arguments_problem(value, key) for value in arguments)), None)
    most = MOST_OF.get(key.rpartition(".")[2], LARGEST)
    if isinstance(arguments, int | float) and abs(arguments) > most:
        return key, f"{shown(arguments)} is too large; at most {most}"
    return None


def check_channels(changes: Mapping[str, Any], channels: int, where: str) -> None:
    """Refuse a mean or deviation for another number of channels."""
    for key in ("mean", "std"):
        found = len(changes.get(key, [0] * channels))
        if found not in (1, channels):
            raise UserError(
                f"{where}.{key}: {found} values for images of {channels} channels; give {channels}"
            )


def of_each_channel(values: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Preprocessing in which mean and deviation have a value for each channel; one may stand for all."""
    each = {key: list(values[key]) * (channels if len(values[key]) == 1 else 1) for key in ("mean", "std")}
    return {**values, **each}
