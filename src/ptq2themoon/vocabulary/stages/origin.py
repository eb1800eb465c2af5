"""Stages from a source to model.onnx, and from a data set to its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.image_folders import ClassOrder, class_folders, ordered
from ptq2themoon.vocabulary.job import Input, Job, Machine, Output, Setting
from ptq2themoon.vocabulary.model_source import ONNX, Exporter, PreprocessingChanges, Source
from ptq2themoon.vocabulary.records import parsed
from ptq2themoon.vocabulary.stages.common import EvaluationSource, OnDataset, dataset
from ptq2themoon.vocabulary.validation import validate

# Arguments that would bring in weights that no sidecar names.
OTHER_WEIGHTS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")
LONGEST_WORD = 100_000  # bytes of a word of a command; Linux takes 131,072


def _model(key: str) -> Setting:
    return Setting(lambda params, wildcards: getattr(params.every_model[wildcards.model], key))


def _changes(params: Any, wildcards: Any) -> str:
    changes = params.every_model[wildcards.model].preprocessing
    return json.dumps(changes.given() if changes else {})


def _label_names(params: Any, wildcards: Any) -> str:
    """What class folders are called, in the order of their labels; none where not said, or too long."""
    data = params.every_dataset[params.every_model[wildcards.model].dataset]
    if data.kind != "folder" or data.classes:
        return "[]"
    names = json.dumps(ordered(class_folders(Path(data.evaluation)), data.class_order))
    return names if len(names) <= LONGEST_WORD else "[]"


class Export(Job):
    """Export a model to ONNX."""

    stage: ClassVar[str] = "export"

    source: Annotated[str, _model("source")]
    """A timm name with tag, local-dir:FOLDER, hf-hub:NAME@REVISION or onnx:FILE."""
    checkpoint: Annotated[Path | None, _model("checkpoint")] = None
    """A file of weights, .safetensors or .pth, that replaces those of the source."""
    arguments: Annotated[
        str, Setting(lambda params, w: json.dumps(params.every_model[w.model].arguments))
    ] = "{}"
    """Arguments of timm.create_model, as JSON."""
    exporter: Annotated[Exporter, _model("exporter")] = "torchscript"
    """How torch exports: torchscript (by tracing) or dynamo."""
    opset: Annotated[int, _model("opset")] = 13
    """ONNX opset."""
    preprocessing: Annotated[str, Setting(_changes)] = "{}"
    """Preprocessing values that replace timm's, as JSON."""
    features: Annotated[
        bool, Setting(lambda params, wildcards: not params.every_model[wildcards.model].classifier)
    ] = False
    """The outputs are features, not logits."""
    output: Annotated[str | None, _model("output")] = None
    """The output to use of an ONNX file."""
    label_names: Annotated[str, Setting(_label_names)] = "[]"
    """Class names, as JSON, if the source has none; ignored if the model has another number of classes."""
    out_model: Annotated[Path, Output(layout.ONNX_MODEL)]
    """model.onnx."""
    out_info: Annotated[Path, Output(layout.MODEL_INFO)]
    """model.json."""

    def where_from(self) -> Source:
        """The source with what goes with it.

        Raises:
            UserError: options that are no JSON, or that do not go with the source.
        """
        arguments, preprocessing = timm_arguments(self.arguments), _preprocessing(self.preprocessing)
        if self.source.startswith(ONNX) and (self.checkpoint or arguments):
            raise UserError(
                f"--source {self.source}: has weights of its own; no --checkpoint, no --arguments"
            )
        return Source(self.source, self.checkpoint, arguments, preprocessing, not self.features, self.output)

    def unmarked_inputs(self) -> list[Path]:
        return self.where_from().files()

    def parameters(self) -> dict[str, Any]:
        source = self.where_from()
        names = json.loads(self.label_names)
        asked: dict[str, Any] = {} if self.output is None else {"output": self.output}
        asked |= {"label_names": names} if names else {}
        return asked | {
            "source": self.source,
            "arguments": source.arguments,
            "exporter": None if source.onnx_file else self.exporter,
            "opset": None if source.onnx_file else self.opset,
            "preprocessing": source.preprocessing,
            "classifier": source.classifier,
        }


class _Listing(OnDataset):
    """A stage that looks at all images of a data set."""

    where: ClassVar[str] = "{model}"

    classes: Annotated[str | None, Setting(lambda params, wildcards: dataset(params, wildcards).classes)] = (
        None
    )
    """imagenet: class folders are named by WordNet id or index."""
    class_order: Annotated[
        ClassOrder | None, Setting(lambda params, wildcards: dataset(params, wildcards).class_order)
    ] = None
    """Order of class folders, which decides labels: string or natural."""
    info: Annotated[Path, Input(layout.MODEL_INFO)]
    """model.json of the model."""
    threads: Annotated[int | None, Machine("{threads}")] = None
    """Threads that decode; all cores by default."""

    def parameters(self) -> dict[str, Any]:
        found = super().parameters()
        unsaid = {key for key in ("classes", "class_order") if getattr(self, key) is None}
        return {key: value for key, value in found.items() if key not in unsaid}


class DrawCalibration(_Listing):
    """Draw calibration images, evenly over the classes."""

    stage: ClassVar[str] = "draw_calibration"
    where: ClassVar[str] = "{model}/n{images}-s{seed}"

    source: Annotated[Path, Setting(lambda params, wildcards: dataset(params, wildcards).calibration)]
    """The data set: file, folder or NAME:SPLIT:ROOT."""
    images: Annotated[int, Setting("{images}")]
    """How many images are drawn."""
    seed: Annotated[int, Setting("{seed}")]
    """Seed of the draw."""
    out: Annotated[Path, Output(layout.CALIBRATION)]
    """calibration.safetensors."""


class ListEvaluation(_Listing):
    """List the evaluation images; all recipes use the same."""

    stage: ClassVar[str] = "list_evaluation"
    SEED: ClassVar[int] = 0

    source: EvaluationSource
    """The data set: file, folder or NAME:SPLIT:ROOT."""
    images: Annotated[int | Literal["all"], Setting(lambda params, _: params.evaluation.images or "all")]
    """How many images are listed: a number, or all."""
    out: Annotated[Path, Output(layout.MANIFEST)]
    """evaluation.csv."""

    @property
    def most(self) -> int | None:
        """The number of images; None: all."""
        return None if self.images == "all" else self.images

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"images": self.most}

    def drawn_with(self) -> int:
        return self.SEED


def _json_object(text: str, option: str, example: str) -> dict[str, Any]:
    try:
        value = parsed(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{option} {text}: must be an object, as in {example}")
    return value


def timm_arguments(text: str) -> dict[str, Any]:
    """The option `--arguments`; `UserError` where it is no JSON or would bring in other weights."""
    arguments = _json_object(text, "--arguments", '{"img_size": 384}')
    for key in OTHER_WEIGHTS:
        if key in arguments:
            raise UserError(f"--arguments {key}: not here; weights come from --source or --checkpoint")
    return arguments


def _preprocessing(text: str) -> dict[str, Any]:
    changes = _json_object(text, "--preprocessing", '{"mean": [0.5], "std": [0.5]}')
    return validate(PreprocessingChanges, changes, "--preprocessing").given()
