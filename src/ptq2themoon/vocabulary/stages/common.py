"""Options that several stages share: the model, its images, recipes, figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Setting
from ptq2themoon.vocabulary.model_source import FILE_KINDS
from ptq2themoon.vocabulary.parameter_files import images_for
from ptq2themoon.vocabulary.recipes import load_recipe


def dataset(params: Any, wildcards: Any) -> Any:
    """The data set of a model, or of one that only the benchmark has."""
    model = params.every_model[wildcards.model]
    return params.every_dataset[model.dataset]


def recipe_files(path: Path) -> list[Path]:
    """A recipe and those that it extends."""
    return load_recipe(path).sources


def methods_of(paths: Iterable[Path]) -> tuple[str, ...]:
    """Names of the methods that recipes call; a recipe that is yet to be made calls none."""
    calls = [call for path in paths if path.is_file() for call in load_recipe(path).methods]
    return tuple(dict.fromkeys(call.name for call in calls))


def recipe_parameters(path: Path) -> dict[str, Any]:
    """What the sidecar of a stage says of the recipe that it calibrates."""
    recipe = load_recipe(path)
    return {"recipe": recipe.name, **recipe.resolved()}


def asked_images(section: str, key: str) -> Setting:
    """How many evaluation images a parameter asks for; where it is not stated, no more than there are."""
    return Setting(lambda params, wildcards: images_for(params, wildcards.model, section, key))


Kind = Annotated[str, Setting(lambda params, wildcards: dataset(params, wildcards).kind)]
EvaluationSource = Annotated[Path, Setting(lambda params, wildcards: dataset(params, wildcards).evaluation)]
RecipeFile = Annotated[Path, Input(layout.RECIPE, recipe_files)]
Qparams = Annotated[tuple[Path, Path], Input(layout.QPARAMS)]


class OnModel(Job):
    """A stage that runs a fused model."""

    model: Annotated[Path, Input(layout.HEAVY, layout.fused_files)]
    """Folder of fused.onnx, fusion.json and model.json."""


class OnDevice(Job):
    """A stage that computes on a device of choice."""

    device: Annotated[str, Setting("device", recorded=False)] = "auto"
    """Where the model runs: auto, cpu or cuda."""


class OnDataset(Job):
    """A stage that reads a data set."""

    kind: Kind
    """Kind of the data set: arrays, folder, csv or torchvision."""

    def unmarked_inputs(self) -> list[Path]:
        source: Path = self.source  # type: ignore[attr-defined]
        return [source] if self.kind in FILE_KINDS else []


class OnImages(OnModel, OnDataset, OnDevice):
    """A stage that runs a fused model on the evaluation images."""

    manifest: Annotated[Path, Input(layout.MANIFEST)]
    """evaluation.csv: the list of evaluation images."""
    source: EvaluationSource
    """The data set: file, folder or NAME:SPLIT:ROOT."""


class Figure(Job):
    """A stage that draws."""

    dpi: Annotated[int, Setting("plots.dpi")] = 150
    """Resolution of the PNG file."""
