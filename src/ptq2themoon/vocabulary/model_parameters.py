"""The sections `models` and `datasets` of params.yaml: what is quantized, and on which images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.image_folders import ClassOrder
from ptq2themoon.vocabulary.model_source import (
    FILE_KINDS,
    ONNX,
    Exporter,
    PreprocessingChanges,
    arguments_problem,
    name_problem,
    opset_problem,
    option_problem,
)
from ptq2themoon.vocabulary.torchvision_names import parse_torchvision
from ptq2themoon.vocabulary.validation import Strict, shown

# Of timm.create_model, as far as they are known by heart: they stand under `arguments`.
TIMM_ARGUMENTS = ("num_classes", "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")


class Model(Strict):
    """A model, and the data set that it is calibrated and evaluated on."""

    source: str
    """A timm model, best with its tag; `local-dir:FOLDER` with timm's config.json; `hf-hub:NAME@REVISION`;
    or `onnx:FILE`, of any exporter."""
    dataset: str
    """The name of a data set, a key of `datasets`."""
    checkpoint: str | None = None
    """A file of weights that replaces the source's own."""
    arguments: dict[str, JsonValue] = Field(default={})
    """Further arguments of timm.create_model, such as `img_size`."""
    exporter: Exporter = "torchscript"
    """How torch exports a timm model: `torchscript` (by tracing) or `dynamo`."""
    opset: int = Field(default=13, ge=11, le=20)
    """ONNX opset of the export: 11 to 17 by `torchscript`, 18 to 20 by `dynamo`."""
    preprocessing: PreprocessingChanges | None = None
    """Preprocessing values that replace timm's; an ONNX file needs `mean` and `std`."""
    classifier: bool = True
    """`false`: the outputs are features, whatever their shape."""
    output: str | None = None
    """The output to use of an ONNX file with several; default: the one named `logits`, else the first."""

    @model_validator(mode="before")
    @classmethod
    def _in_arguments(cls, values: Any) -> Any:
        for key in TIMM_ARGUMENTS:
            if isinstance(values, dict) and key in values:
                told = f"arguments: {{{key}: {shown(values[key])}}}"
                raise ValueError(f"{key} is an argument of timm.create_model; say `{told}`")
        return values

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong there) of values that no stage can take, or not together."""
        if self.output is not None and option_problem(self.output):
            yield "output", f"{shown(self.output)}: no name that a command takes; rename it in the file"
        if found := arguments_problem(self.arguments):
            yield f"arguments.{found[0]}", found[1]
        if self.source.startswith(ONNX):
            for key in ("checkpoint", "arguments", "exporter", "opset"):
                if getattr(self, key) != Model.model_fields[key].default:
                    yield key, "not for an ONNX file, which has its own; leave it out"
            given = self.preprocessing.given() if self.preprocessing else {}
            missing = [key for key in ("mean", "std") if key not in given]
            if missing:
                yield "preprocessing", f"{' and '.join(missing)} missing; an ONNX file does not tell them"
            return
        if self.output is not None:
            yield "output", "for an ONNX file; a timm model has one, leave it out"
        if self.checkpoint is not None and (problem := name_problem(self.checkpoint)):
            yield "checkpoint", problem
        if problem := opset_problem(self.exporter, self.opset):
            yield "opset", f"{self.opset}: {problem}"


class Dataset(Strict):
    """Calibration images and evaluation images."""

    kind: Literal["arrays", "folder", "csv", "torchvision"]
    """`arrays`: safetensors files with images and labels; `folder`: one subfolder of images per class, or no
    subfolders and no labels; `csv`: a table with columns path and label; `torchvision`: a data set of
    torchvision in local files."""
    calibration: str
    """The file or folder that calibration draws from, or NAME:SPLIT:ROOT of torchvision."""
    evaluation: str
    """The same for the evaluation images."""
    classes: Literal["imagenet"] | None = None
    """`imagenet`: class folders are named by WordNet id or index of ImageNet-1k; null: class folders sorted
    by name are classes 0, 1, 2, …"""
    class_order: ClassOrder | None = None
    """`string`: names of class folders are sorted as text, as torchvision does; `natural`: by the numbers in
    them and without case, as timm does; null: as text, refused where the two differ."""

    @field_validator("calibration", "evaluation")
    @classmethod
    def _place(cls, place: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if problem := (name_problem if kind in FILE_KINDS else option_problem)(place):
            raise ValueError(problem)
        if kind == "torchvision":
            try:
                parse_torchvision(place)
            except UserError as error:
                raise ValueError(str(error)) from error
        return place

    @field_validator("classes", "class_order")
    @classmethod
    def _of_folders(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if value and kind not in (None, "folder"):
            raise ValueError(f"{value!r} is for kind folder, not {kind}; leave it out")
        if value and info.field_name == "class_order" and info.data.get("classes"):
            raise ValueError(f"{value!r}: names of ImageNet's classes tell their labels; leave it out")
        return value
