"""Where every result of the pipeline lies: the one place that writes paths and keys.

Patterns hold wildcards as Snakemake's do. What decides a run is in its key: bits, calibration images, seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

RESULTS = "results"
RECIPES = "recipes"
SHIPPED = "fast"  # the mode of the INT8 model to ship
FP32 = "fp32"  # stands where a recipe's name does, for floating point

EXAMPLE = f"{RESULTS}/example"  # git keeps it: the small part of what the repository's own params.yaml gives
# What the example lacks: graphs and arrays, rows of every image or channel, what benchmarks make.
NOT_IN_EXAMPLE = (
    *("models/*", "*.html", "*/attention.csv", "*/activations.csv", ".*", "*/.*"),
    *("benchmarks/*/evaluation.*", "benchmarks/*/ppq.*", "benchmarks/*/*.csv"),  # rows of one model
    *("stretched-*/*", "random-*/*"),  # models that only the benchmark has
    *("*/attention_overview.svg", "*/attention_rollout.svg"),  # images for the most part, as in the PNG
)

OF_ALL_MODELS = ("study", "leaderboard", "benchmarks")  # folders of results beside those of models

HEAVY = f"{RESULTS}/models/{{model}}"
SMALL = f"{RESULTS}/{{model}}"
KEY = "{bits}-n{images}-s{seed}"
KEY_PATTERN = r"w\d+a\d+-n\d+-s\d+"
RUN = "{recipe}/{key}"

ONNX_MODEL, MODEL_INFO = f"{HEAVY}/model.onnx", f"{HEAVY}/model.json"
FUSED = ("fused.onnx", "fusion.json", "model.json")  # of a model's folder
FUSED_GRAPH, FUSION = f"{HEAVY}/fused.onnx", f"{HEAVY}/fusion.json"
CALIBRATION = f"{HEAVY}/calibration-n{{images}}-s{{seed}}.safetensors"
MANIFEST = f"{SMALL}/evaluation.csv"
RECIPE = f"{RECIPES}/{{recipe}}.yaml"

QPARAMS = (f"{HEAVY}/{RUN}/qparams.json", f"{HEAVY}/{RUN}/qparams.safetensors")
QPARAMS_OF_KEY = tuple(path.replace("{key}", KEY) for path in QPARAMS)

FP32_METRICS = f"{SMALL}/{FP32}/metrics.json"
REFERENCE = f"{HEAVY}/{FP32}/reference.safetensors"
METRICS, ATTENTION = f"{SMALL}/{RUN}/metrics.json", f"{SMALL}/{RUN}/attention.csv"
SIMULATED = f"{HEAVY}/{RUN}/simulated.safetensors"
# What shards hand to the stage that gathers them; then they are removed.
REFERENCE_PART = f"{HEAVY}/{FP32}/reference-{{scatteritem}}.safetensors"
SIMULATED_PART = f"{HEAVY}/{RUN}/simulated-{{scatteritem}}.safetensors"
RUNTIME_PART = f"{HEAVY}/{RUN}/runtime-{{scatteritem}}.safetensors"
OPERATOR_ERRORS, RANKING = f"{SMALL}/{RUN}/operators.csv", f"{SMALL}/{RUN}/ranking.json"
# A variant is `fp32`, or RUN.
ATTENTION_MAPS = f"{HEAVY}/{{variant}}/attention_maps.safetensors"
ROLLOUT = f"{HEAVY}/{{variant}}/rollout.safetensors"

INT8, DEPLOYED = f"{HEAVY}/{RUN}/{{mode}}/int8.onnx", f"{HEAVY}/{RUN}/{{mode}}/deploy.json"
RUNTIME, RUNTIME_OPERATORS = f"{SMALL}/{RUN}/runtime.json", f"{SMALL}/{RUN}/runtime_operators.csv"

SUMMARY = tuple(f"{RESULTS}/summary.{kind}" for kind in ("csv", "md", "html"))
HEADLINES = ("top1", "fast_top1", "agreement", "logits_sqnr_db")  # columns that DVC shows, each a file
HEADLINE_FILES = tuple(f"{RESULTS}/{name}.json" for name in HEADLINES)
FIGURES = ("top1", "errors_along_network", "attention_overview", "attention_heads")


def figure(name: str, kind: str) -> str:
    """The file of one of `FIGURES`."""
    return f"{SMALL}/figures/{name}.{kind}"


def fill(pattern: str, wildcards: Any) -> str:
    """A pattern with each wildcard replaced by the attribute of that name."""
    return pattern.format_map(_Attributes(wildcards))


class _Attributes(dict[str, Any]):
    def __init__(self, holder: Any) -> None:
        super().__init__()
        self._holder = holder

    def __missing__(self, name: str) -> Any:
        return getattr(self._holder, name)


@dataclass(frozen=True)
class Run:
    """One quantization of one model; an instance serves as wildcards.

    Attributes:
        images: how many it is calibrated on.
        mode: of a deployed model.
    """

    model: str
    recipe: str = FP32
    bits: str = FP32
    images: int | None = None
    seed: int | None = None
    mode: str = ""

    @property
    def key(self) -> str:
        """What decides the run besides the recipe, as paths write it."""
        return fill(KEY, self)

    @property
    def variant(self) -> str:
        """`fp32`, or recipe and key."""
        return FP32 if self.recipe == FP32 else fill(RUN, self)

    def as_mode(self, mode: str) -> Run:
        """The run as deployed in a mode."""
        return replace(self, mode=mode)

    @property
    def row(self) -> list[Any]:
        """What a row of the summary is found by."""
        return [self.model, self.recipe, self.bits, self.images, self.seed]


def runs_of(params: Any, model: str) -> list[Run]:
    """Every quantization of a model that params.yaml asks for: recipes, then bits, then seeds."""
    calibration = params.calibration
    return [
        Run(model, recipe, bits, calibration.images, seed)
        for recipe in params.recipes
        for bits in params.bits
        for seed in calibration.seeds
    ]


def calibration_draws(params: Any) -> list[tuple[int, int]]:
    """(images, seed) of each draw of calibration images; the first is what the fused graph is checked on."""
    calibration = params.calibration
    return list(
        dict.fromkeys([calibration.check, *((calibration.images, seed) for seed in calibration.seeds)])
    )


def pipeline_files(params: Any) -> list[str]:
    """Every file that DVC keeps: with one of them gone, the rule that makes it runs."""
    return [
        *SUMMARY,
        *HEADLINE_FILES,
        *(file for model in params.models for file in _model_files(params, model)),
    ]


def _model_files(params: Any, model: str) -> Iterator[str]:
    once = (ONNX_MODEL, MODEL_INFO, FUSED_GRAPH, FUSION, MANIFEST, FP32_METRICS, REFERENCE)
    figures = (figure(name, kind) for name in FIGURES for kind in ("png", "svg"))
    yield from _filled((*once, *figures, ATTENTION_MAPS), Run(model))
    for images, seed in calibration_draws(params):
        yield fill(CALIBRATION, Run(model, images=images, seed=seed))
    modes = params.deploy.modes
    each = (*QPARAMS, SIMULATED, ATTENTION_MAPS, METRICS, ATTENTION, OPERATOR_ERRORS, RANKING)
    for run in runs_of(params, model):
        yield from _filled((*each, *((RUNTIME, RUNTIME_OPERATORS) if modes else ())), run)
        for mode in modes:
            yield from _filled((INT8, DEPLOYED), run.as_mode(mode))


def _filled(patterns: Iterable[str], run: Run) -> Iterator[str]:
    return (fill(pattern, run) for pattern in patterns)


def in_example(name: str) -> bool:
    """Whether the committed example has a file of the results; `name` is relative to them, with slashes."""
    return not any(fnmatchcase(name, pattern) for pattern in NOT_IN_EXAMPLE)


def recipe_file(name: str) -> str:
    """The file of a recipe."""
    return RECIPE.format(recipe=name)


def check_images(params: Any, model: str) -> str:
    """The calibration images that a fused graph is checked on."""
    images, seed = params.calibration.check
    return fill(CALIBRATION, Run(model, images=images, seed=seed))


def fused_files(folder: Path) -> list[Path]:
    """The three files that make a fused model."""
    return [folder / name for name in FUSED]
