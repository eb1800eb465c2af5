"""The parameters of params.yaml: their keys, and checks of all that they refer to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ptq2themoon.vocabulary.benchmark_layout import RANDOM_IMAGES, STRETCHED, STRETCHED_WEIGHTS
from ptq2themoon.vocabulary.benchmark_parameters import Benchmark
from ptq2themoon.vocabulary.bits import Bits, parse_bits
from ptq2themoon.vocabulary.data_free_parameters import DataFree
from ptq2themoon.vocabulary.errors import nearest
from ptq2themoon.vocabulary.folder_names import Name
from ptq2themoon.vocabulary.leaderboard_parameters import Leaderboard
from ptq2themoon.vocabulary.learning_curve_parameters import LearningCurve
from ptq2themoon.vocabulary.model_parameters import Dataset, Model
from ptq2themoon.vocabulary.model_source import ONNX, source_problem
from ptq2themoon.vocabulary.modes import MODES, Mode
from ptq2themoon.vocabulary.parameter_files import file_problems
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.study_parameters import Study
from ptq2themoon.vocabulary.validation import (
    SOME,
    UNIQUE,
    Key,
    Positive,
    Strict,
    failure,
    shown,
    validate,
)
from ptq2themoon.vocabulary.yaml_files import read_yaml

# A pattern for the keys alone would let others through.
_named = Field(json_schema_extra={"additionalProperties": False})


class Calibration(Strict):
    images: Positive
    """How many images are drawn."""
    batch_size: Positive
    """Images in a batch."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], *SOME]
    """One quantized model for each; a seed decides which images are drawn."""

    @property
    def check(self) -> tuple[int, int]:
        """Number and seed of the images that the fused graph is checked on."""
        return min(16, self.images), 0


class Evaluation(Strict):
    images: Positive | None
    """How many images are evaluated, the same for all recipes, drawn evenly over the classes; null: all."""
    batch_size: Positive
    """Images in a batch."""
    shards: int = Field(default=1, ge=1, le=1000)
    """Jobs that share the images of each evaluation, for clusters; results do not depend on it."""


class Errors(Strict):
    images: Positive = 64
    """Evaluation images for the error of each operator's output."""
    logits_images: Positive = 32
    """Evaluation images for the error of the logits when only one operator is quantized."""


class Attention(Strict):
    images: Positive = 4
    """How many images the attention figures show."""
    block: int = -1
    """The block whose attention is measured and drawn; a negative number counts from the end."""


class Deployment(Strict):
    """INT8 models for runtimes."""

    modes: Annotated[list[Mode], *UNIQUE] = list(MODES)
    """`faithful`: all that the recipe quantizes; `fast`: only what integer kernels make faster; []: none."""


MOST_RUNS = 20_000
COLORMAP = re.compile(r"[A-Za-z0-9_]+")


def _colormap(name: str) -> str:
    """Refuse what can't be a name; which names there are only matplotlib knows."""
    if not COLORMAP.fullmatch(name):
        raise ValueError(f"{shown(name)} names no colour map; letters, digits, _ are allowed, as in viridis")
    return name


class Plots(Strict):
    dpi: int = Field(default=150, ge=50, le=1200)
    """Resolution of the PNG files."""
    colormap: Annotated[
        str, AfterValidator(_colormap), Field(json_schema_extra={"pattern": f"^{COLORMAP.pattern}$"})
    ] = "viridis"
    """A matplotlib colour map, for attention."""


class Params(Strict):
    """All parameters that decide a result, except those of recipes."""

    models: Annotated[dict[Name, Model], Field(min_length=1), _named]
    """The models to quantize, by name."""
    datasets: Annotated[dict[Name, Dataset], _named]
    """The data sets, by name."""
    recipes: Annotated[list[Name], *SOME]
    """The recipes: files of recipes/, without `.yaml`."""
    bits: Annotated[list[Bits], *SOME]
    """Bits of weights and activations, such as `w8a8`."""
    calibration: Calibration
    evaluation: Evaluation
    errors: Errors = Errors()
    attention: Attention = Attention()
    deploy: Deployment = Deployment()
    plots: Plots = Plots()
    benchmark: Benchmark = Benchmark()
    study: Study = Study()
    leaderboard: Leaderboard = Leaderboard()
    data_free: DataFree = DataFree()
    learning_curve: LearningCurve = LearningCurve()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; `auto`: on a GPU if torch sees one."""

    @property
    def stretched(self) -> dict[str, Model]:
        """Models of the benchmark: the functions of those above, with outlier channels."""
        timm = [name for name, model in self.models.items() if not model.source.startswith(ONNX)]
        return {
            STRETCHED.format(base=name): self.models[name].model_copy(
                update={"checkpoint": STRETCHED_WEIGHTS.format(base=name)}
            )
            for name in (timm if self.benchmark.stretched else [])
        }

    @property
    def every_model(self) -> dict[str, Model]:
        """The models, and those that only the benchmark has."""
        return {**self.models, **self.stretched, **self.benchmark.random}

    @property
    def every_dataset(self) -> dict[str, Dataset]:
        """The data sets, and those of the benchmark's models: arrays that it draws itself."""
        drawn = {
            model.dataset: RANDOM_IMAGES.format(architecture=model.source)
            for model in self.benchmark.random.values()
        }
        random = {
            name: Dataset(kind="arrays", calibration=file, evaluation=file) for name, file in drawn.items()
        }
        return {**self.datasets, **random}

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], source: str = "params.yaml", recipes_dir: Path = Path("recipes")
    ) -> Params:
        """Check a mapping and all it refers to; paths count from the working directory.

        Raises:
            UserError: one line for each thing wrong, here or in a recipe, with file, key, value and
                the nearest valid one.
        """
        params = validate(cls, mapping, source)
        problems = list(params._broken_references(recipes_dir))
        if problems:
            raise failure(source, problems)
        for recipe in params.recipes:
            load_recipe(recipes_dir / f"{recipe}.yaml", [parse_bits(bits) for bits in params.bits])
        if "leaderboard" in params.model_fields_set:
            for recipe in params.leaderboard.recipes:
                bits = [parse_bits(bits) for bits in params.leaderboard.bits_for(recipe)]
                load_recipe(recipes_dir / f"{recipe}.yaml", bits)
        if "learning_curve" in params.model_fields_set:
            for recipe in params.learning_curve.recipes:
                load_recipe(recipes_dir / f"{recipe}.yaml", [parse_bits(params.learning_curve.bits)])
        if "data_free" in params.model_fields_set:
            for recipe in params.data_free.sources.values():
                bits = [parse_bits(bits) for bits in params.data_free.bits]
                load_recipe(recipes_dir / f"{recipe}.yaml", bits)
        return params

    def _broken_references(self, recipes_dir: Path) -> Iterator[tuple[Key, str]]:
        for name, model in self.models.items():
            if model.dataset not in self.datasets:
                hint = nearest(model.dataset, self.datasets or ["none yet"])
                yield ("models", name, "dataset"), f"unknown data set {model.dataset!r}; {hint}"
            problem = source_problem(model.source)
            if problem:
                yield ("models", name, "source"), problem
            else:
                yield from ((("models", name, key), what) for key, what in model.problems())
        yield from self._benchmark_problems()
        yield from self._too_many_images()
        yield from self._too_many_runs()
        yield from _unknown_recipes(("recipes",), self.recipes, recipes_dir)
        lists = {
            "benchmark": ("recipes", "learned"), "study": ("recipes",), "leaderboard": ("recipes",),
            "learning_curve": ("recipes",),
        }  # fmt: skip
        for section, keys in lists.items():
            for key in keys if section in self.model_fields_set else ():
                yield from _unknown_recipes((section, key), getattr(getattr(self, section), key), recipes_dir)
        if "leaderboard" in self.model_fields_set:
            yield from self._leaderboard_problems()
        if "data_free" in self.model_fields_set:
            yield from self._data_free_problems(recipes_dir)

    def _leaderboard_problems(self) -> Iterator[tuple[Key, str]]:
        """Recipes that are named beside `recipes`, and are none of them."""
        board = self.leaderboard
        keys: list[tuple[Key, str]] = [(("bases", i), name) for i, name in enumerate(board.bases)]
        for key, name in [*keys, *((("bits_of", name), name) for name in board.bits_of)]:
            if name not in board.recipes:
                hint = nearest(name, board.recipes)
                yield ("leaderboard", *key), f"{name!r} is no row of the leaderboard; {hint}"

    def _data_free_problems(self, recipes_dir: Path) -> Iterator[tuple[Key, str]]:
        """Sources whose recipe is not there."""
        for name, recipe in self.data_free.sources.items():
            key = ("data_free", "sources", name)
            yield from ((key, what) for _, what in _unknown_recipes(key, [recipe], recipes_dir))

    def _benchmark_problems(self) -> Iterator[tuple[Key, str]]:
        """Architectures unknown, or models called as those of the benchmark."""
        for name in {*self.stretched, *self.benchmark.random} & set(self.models):
            yield ("models", name), "taken by the benchmark; choose another name"
        architectures = self.benchmark.architectures
        for index, name in enumerate(architectures):
            if architectures != Benchmark().architectures and (problem := source_problem(name)):
                yield ("benchmark", "architectures", index), problem

    def check_files(self, source: str = "params.yaml") -> None:
        """`UserError` naming each checkpoint and data set of a model that is not there or does not do."""
        if problems := list(file_problems(self)):
            raise failure(source, problems)

    def _too_many_runs(self) -> Iterator[tuple[Key, str]]:
        """More runs than can be planned: Snakemake looks at each of their jobs."""
        more = {
            "recipes": (self.recipes, self.bits, self.calibration.seeds),
            "study": (self.study.recipes, self.study.bits, self.study.seeds),
            "leaderboard": (self.leaderboard.recipes, self.leaderboard.bits, self.leaderboard.seeds),
            "data_free": (self.data_free.sources, self.data_free.bits, self.data_free.seeds),
            "learning_curve": (self.learning_curve.recipes, self.learning_curve.iterations),
        }
        for section, parts in more.items():
            runs = len(self.models) * prod(map(len, parts))
            if runs > MOST_RUNS:
                yield (section,), f"{runs} runs of all models, recipes, bits and seeds; at most {MOST_RUNS}"

    def _too_many_images(self) -> Iterator[tuple[Key, str]]:
        """What is asked of more images than are evaluated."""
        evaluated = self.evaluation.images
        for key in (("errors", "images"), ("errors", "logits_images"), ("attention", "images")):
            asked = getattr(getattr(self, key[0]), key[1])
            stated = key[1] in getattr(self, key[0]).model_fields_set
            if evaluated is not None and asked > evaluated and stated:
                yield key, f"{asked}, but evaluation.images is {evaluated}; at most that many"


def _unknown_recipes(key: Key, recipes: Sequence[str], folder: Path) -> Iterator[tuple[Key, str]]:
    for index, recipe in enumerate(recipes):
        if not (folder / f"{recipe}.yaml").is_file():
            hint = nearest(recipe, sorted(path.stem for path in folder.glob("*.yaml")))
            yield (*key, index), f"unknown recipe {recipe!r} in {folder}; {hint}"


def load_params(path: Path, recipes_dir: Path = Path("recipes")) -> Params:
    """The parameters in a file, checked as `Params.from_mapping` does."""
    return Params.from_mapping(read_yaml(path), str(path), recipes_dir)
