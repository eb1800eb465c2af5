"""What a job will take, by a line fitted to measured jobs: for what a cluster is asked, and for plans.

The work of a job is a number of images times the multiplications of its model on one image. Its seconds on
one core are `fixed_s + s_per_work * work`, its largest memory is `fixed_mb + mb_per_gmac * gmacs`; both of
each stage, and of a calibration also of each recipe. Without torch, for the Snakefile reads it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.job import Job
from ptq2themoon.vocabulary.model_source import local_config
from ptq2themoon.vocabulary.onnx_data import model_bytes
from ptq2themoon.vocabulary.stages.study import ablated
from ptq2themoon.vocabulary.study_parameters import AUTO

FOLDER = Path(__file__).resolve().parents[3] / "workflow/costs"
STAGES, MODELS = FOLDER / "stages.csv", FOLDER / "models.csv"
UNKNOWN_IMAGES = 50_000  # of `evaluation.images: null`: as many as ImageNet has
LARGEST = "vit_base_patch16_224"  # counts for a model of which nothing is known
DECODING_S = 0.0065  # of one core for one JPEG: results/benchmarks/loading.csv has 306.5 a second on two
DEAR = 0.9  # share of known recipes that an unknown one is taken to be dearer than


class Cost(NamedTuple):
    """Of one job: seconds on one core, and megabytes of memory."""

    seconds: float
    mb: float


@dataclass(frozen=True)
class Fitted:
    """A row of stages.csv."""

    stage: str
    recipe: str
    fixed_s: float
    s_per_work: float
    fixed_mb: float
    mb_per_gmac: float

    def cost(self, images: float, gmacs: float, work: float) -> Cost:
        """Of a job on so many images of a model."""
        return Cost(self.fixed_s + self.s_per_work * work, self.fixed_mb + self.mb_per_gmac * gmacs)


class Size(NamedTuple):
    """Of a model: millions of parameters, 10^9 multiplications and additions on an image.

    Attributes:
        outputs, attention, pixels: how many numbers its output, its kept attention and its input have.
    """

    parameters_m: float
    gmacs: float
    outputs: int
    attention: int
    pixels: int


NONE = Size(0, 0, 0, 0, 0)  # of a job without a model


def cost_of(kind: type[Job], params: Any, wildcards: Any) -> Cost:
    """What a job is expected to take."""
    model = getattr(wildcards, "model", None)
    size = size_of(params, model) if model else NONE
    images = images_of(kind, params, wildcards)
    fitted = row_of(WHOLE.get(kind.stage, kind.stage), getattr(wildcards, "recipe", ""))
    work = images * (1 if kind.stage in DECODING else size.gmacs)
    found = fitted.cost(images, size.gmacs, work)
    read = images if model and _decodes(kind, params, model) else 0
    return found._replace(seconds=found.seconds + DECODING_S * read)


DECODING = ("draw_calibration", "list_evaluation")
# The stage that a shard does a part of.
WHOLE = {"reference_part": "reference", "evaluate_part": "evaluate", "runtime_part": "verify_runtime"}


def _decodes(kind: type[Job], params: Any, model: str) -> bool:
    entry = _model(params, model)
    dataset = params.datasets.get(entry.dataset)
    return dataset is not None and dataset.kind != "arrays" and kind.stage != "calibrate"


def images_of(kind: type[Job], params: Any, wildcards: Any) -> float:
    """How often a job runs its model on an image, or a number in proportion to it; 0: never."""
    stage, shards = kind.stage, params.evaluation.shards
    evaluated = params.evaluation.images or UNKNOWN_IMAGES
    if stage in WHOLE.values():
        return evaluated if shards == 1 else 0
    if stage in WHOLE:
        return evaluated / shards
    study, board, free, curve = params.study, params.leaderboard, params.data_free, params.learning_curve
    once = study.calibration_images + study.images
    counts: dict[str, Any] = {
        "list_evaluation": lambda: evaluated,
        "draw_calibration": lambda: int(wildcards.images),
        "calibrate": lambda: _calibrated_on(wildcards),
        "export": lambda: 1,
        "fuse": lambda: params.calibration.check[0],
        "deploy": lambda: 1,
        "attention_maps": lambda: params.attention.images,
        "study_rollout": lambda: params.attention.images,
        "leaderboard_kernels": lambda: 1,
        "operator_errors": lambda: params.errors.images + params.errors.logits_images,
        "study_ablation": lambda: (
            once * (1 if wildcards.part == AUTO else len(ablated(params, wildcards.part)))
        ),
        "study_bits": lambda: once * (len(study.bits) - 1),
        "study_auto": lambda: study.ranking_images,
        "study_activations": lambda: study.input_images,
        "study_errors": lambda: study.input_images,
        "study_fusion": lambda: study.rounds,
        "leaderboard_row": lambda: board.images * len(board.seeds),
        "data_free_run": lambda: (free.calibration_images + free.images) * len(free.bits),
        "learning_curve_run": lambda: (curve.calibration_images + curve.images) * len(curve.iterations),
    }
    return float(counts[stage]()) if stage in counts else 0.0


def _calibrated_on(wildcards: Any) -> int:
    key = getattr(wildcards, "key", "")
    return int(key.split("-")[1][1:]) if key else int(wildcards.images)


def size_of(params: Any, model: str) -> Size:
    """By the name of the architecture, or by the size of its file; else that of a ViT-Base."""
    source = _model(params, model).source
    known = _sizes()
    name = source.split(":")[-1].split("/")[-1].split("@")[0].split(".")[0]
    if name in known:
        return known[name]
    found = _size_of_file(source)
    return found or known[LARGEST]


def _model(params: Any, name: str) -> Any:
    return params.models.get(name) or params.every_model[name]


@cache  # no file of weights changes while jobs are planned
def _size_of_file(source: str) -> Size | None:
    kind, _, place = source.partition(":")
    path = Path(place)
    if kind == "onnx" and path.is_file():
        return _guessed(model_bytes(path), {})
    if kind == "local-dir" and (path / "model.safetensors").is_file():
        return _guessed((path / "model.safetensors").stat().st_size, _arguments(path))
    return None


def _guessed(weights: int, arguments: dict[str, int]) -> Size:
    """Of weights of so many bytes, each of which meets every token once."""
    side, patch = arguments.get("img_size", 224), arguments.get("patch_size", 16)
    tokens, parameters = (side // patch) ** 2 + 1, weights / 4
    classes, heads = arguments.get("num_classes", 1000), arguments.get("num_heads", 12)
    pixels = arguments.get("in_chans", 3) * side * side
    return Size(parameters / 1e6, parameters * tokens / 1e9, classes, heads * (tokens - 1), pixels)


def _arguments(folder: Path) -> dict[str, int]:
    try:
        found = local_config(folder).get("model_args") or {}
    except UserError:  # which the check of the parameters says
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int) and value > 0}


@cache
def _sizes() -> dict[str, Size]:
    rows = _read(MODELS)
    return {
        row["architecture"]: Size(
            float(row["parameters_m"]), float(row["gmacs"]), *(int(row[name]) for name in Size._fields[2:])
        )
        for row in rows
    }


def row_of(stage: str, recipe: str = "") -> Fitted:
    """The row of a stage, and of a recipe where there is one; of an unknown stage or recipe a dear one."""
    rows = _rows()
    if (stage, recipe) in rows:
        return rows[stage, recipe]
    alike = sorted(
        (row for (name, _), row in rows.items() if name == stage), key=lambda row: row.s_per_work
    ) or sorted(rows.values(), key=lambda row: row.s_per_work)
    return alike[int(DEAR * (len(alike) - 1))]


@cache
def _rows() -> dict[tuple[str, str], Fitted]:
    found = [
        Fitted(row["stage"], row["recipe"], *(float(row[name]) for name in list(Fitted.__annotations__)[2:]))
        for row in _read(STAGES)
    ]
    return {(row.stage, row.recipe): row for row in found}


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
