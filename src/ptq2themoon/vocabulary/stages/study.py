"""The stages of the study that run a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout, study_layout
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.common import OnDevice, OnImages, OnModel, methods_of, recipe_files
from ptq2themoon.vocabulary.stages.evaluate import BatchSize, Block, OfVariant, ReferenceFile
from ptq2themoon.vocabulary.study_layout import Variant, first_run, studied
from ptq2themoon.vocabulary.study_parameters import AUTO, BASE, CHANNELWISE

InputImages = Annotated[int, Setting("study.input_images")]


def _recipe(name: str) -> Input:
    return Input(layout.recipe_file(name), recipe_files)


def _drawn(params: Any, wildcards: Any) -> str:
    """The study's own draw of calibration images."""
    seed = getattr(wildcards, "seed", None)
    seed = params.study.seeds[0] if seed is None else seed
    run = layout.Run(wildcards.model, images=params.study.calibration_images, seed=seed)
    return layout.fill(layout.CALIBRATION, run)


class OnStudyImages(OnImages):
    """A stage that calibrates and evaluates recipes on the study's images."""

    reference: ReferenceFile
    """reference.safetensors."""
    calibration: Annotated[Path, Input(_drawn)]
    """Calibration images."""
    calibration_batch_size: Annotated[int, Setting("calibration.batch_size")]
    """Calibration images in a batch."""
    images: Annotated[int, Setting("study.images")]
    """How many evaluation images are used, at most."""
    batch_size: BatchSize
    """Images in a batch."""
    block: Block = -1
    """The block whose attention is compared; a negative number counts from the end."""


class StudyBits(OnStudyImages):
    """Find the first bits at which a recipe loses more than a limit."""

    stage: ClassVar[str] = "study_bits"

    recipe: Annotated[Path, _recipe(BASE)]
    """The recipe that is tried."""
    bits: Annotated[tuple[str, ...], Setting(lambda params, _: params.study.bits[1:])]
    """Bits to try, in this order."""
    loss: Annotated[float, Setting("study.loss")]
    """The limit, in percentage points."""
    out: Annotated[Path, Output(study_layout.NARROW_BITS)]
    """bits.json."""
    out_metrics: Annotated[Path, Output(studied("fp32.json"))]
    """fp32.json: the reference's metrics."""

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"recipe": load_recipe(self.recipe).name}


class StudyAuto(OnModel, OnDevice):
    """Rank the gain of per-channel scales at each operator, and find a recipe that needs few of them."""

    stage: ClassVar[str] = "study_auto"

    base: Annotated[Path, _recipe(BASE)]
    """The recipe with per-tensor scales."""
    channelwise: Annotated[Path, _recipe(CHANNELWISE)]
    """The recipe with all per-channel scales that may be chosen."""
    bits_from: Annotated[Path, Input(study_layout.NARROW_BITS)]
    """bits.json of study_bits."""
    calibration: Annotated[Path, Input(_drawn)]
    """Calibration images."""
    batch_size: Annotated[int, Setting("calibration.batch_size")]
    """Images in a batch."""
    images: Annotated[int, Setting("study.ranking_images")]
    """How many calibration images the ranking uses."""
    share: Annotated[float, Setting("study.share")]
    """Share of the removable error that the recipe must remove."""
    seed: Annotated[int, Setting(lambda params, _: params.study.seeds[0], recorded=False)]
    """Seed that drew the images; for the sidecar."""
    out: Annotated[Path, Output(study_layout.AUTO_RECIPE)]
    """auto.yaml."""
    out_ranking: Annotated[Path, Output(studied("ranking.csv"))]
    """ranking.csv."""
    out_search: Annotated[Path, Output(studied("search.csv"))]
    """search.csv."""

    def parameters(self) -> dict[str, Any]:
        names = {"base": load_recipe(self.base).name, "channelwise": load_recipe(self.channelwise).name}
        return {**names, **super().parameters()}

    def found_out(self) -> tuple[str, ...]:
        return ("bits",)


def ablated(params: Any, part: str) -> list[str]:
    """The recipes of a part of the ablation, but for auto's.

    Raises:
        UserError: no recipe has weights whose axis `part` could change.
    """
    recipes = list(params.study.recipes)
    if part != "output":
        return recipes
    found = [name for name in recipes if load_recipe(Path(layout.recipe_file(name))).has_weight_channels]
    if not found:
        raise UserError(
            f"study.recipes: none of {', '.join(recipes)} has per-channel weights, whose axis the study "
            f"compares; add one, such as {CHANNELWISE}"
        )
    return found


def _recipes(params: Any, wildcards: Any) -> list[str]:
    if wildcards.part == AUTO:
        return [layout.fill(study_layout.AUTO_RECIPE, wildcards)]
    return [layout.recipe_file(name) for name in ablated(params, wildcards.part)]


def _files(path: Path) -> list[Path]:
    """A recipe and those that it extends; auto.yaml extends none, and may not be there yet."""
    return [path] if path.name == Path(study_layout.AUTO_RECIPE).name else recipe_files(path)


class StudyAblation(OnStudyImages):
    """Evaluate many recipes at one width of bits."""

    stage: ClassVar[str] = "study_ablation"
    where: ClassVar[str] = "{model}/{width}-{part}-s{seed}"

    recipes: Annotated[tuple[Path, ...], Input(_recipes, _files)]
    """Files of recipes/, or auto.yaml."""
    variant: Annotated[Variant, Setting(lambda _, w: "input" if w.part == AUTO else w.part)]
    """How recipes are read."""
    bits: Annotated[
        str | None, Setting(lambda params, w: params.study.bits[0] if w.width == "wide" else None)
    ] = None
    """Bits of weights and activations, such as w8a8."""
    bits_from: Annotated[
        Path | None,
        Input(lambda _, w: layout.fill(study_layout.NARROW_BITS, w) if w.width == "narrow" else None),
    ] = None
    """bits.json of study_bits, in place of --bits: the narrow ones."""
    seed: Annotated[int, Setting("{seed}", recorded=False)]
    """Seed that drew the calibration images; for the table."""
    out: Annotated[Path, Output(study_layout.ABLATION_RUN)]
    """CSV."""

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"recipes": [path.stem for path in self.recipes]}

    def methods_called(self) -> tuple[str, ...]:
        return methods_of(self.recipes)

    def found_out(self) -> tuple[str, ...]:
        return () if self.bits else ("bits",)


class StudyActivations(OnImages):
    """Find the range of every channel of the layers' inputs."""

    stage: ClassVar[str] = "study_activations"

    images: InputImages
    """How many evaluation images are used, at most."""
    batch_size: int = 16
    """Images in a batch."""
    out: Annotated[Path, Output(studied("activations.csv"))]
    """activations.csv."""
    out_largest: Annotated[Path, Output(studied("activations_largest.csv"))]
    """activations_largest.csv."""


def _qparams(recipe: str) -> Input:
    def files(params: Any, wildcards: Any) -> list[str]:
        run = first_run(params, wildcards.model, recipe)
        return [layout.fill(path, run) for path in layout.QPARAMS]

    return Input(files)


class StudyErrors(OnImages):
    """Measure the errors of the layers' inputs, class token and patch tokens apart."""

    stage: ClassVar[str] = "study_errors"

    per_tensor: Annotated[tuple[Path, Path], _qparams(BASE)]
    """qparams.json and .safetensors with one scale per input."""
    per_channel: Annotated[tuple[Path, Path], _qparams(CHANNELWISE)]
    """qparams.json and .safetensors with one scale per channel of an input."""
    images: InputImages
    """How many evaluation images are used, at most."""
    batch_size: int = 16
    """Images in a batch."""
    block: Annotated[int, Setting("study.block")]
    """The block whose channels have their own table; a negative number counts from the end."""
    out: Annotated[Path, Output(studied("errors.csv"))]
    """errors.csv."""
    out_average: Annotated[Path, Output(studied("errors_average.csv"))]
    """errors_average.csv."""
    out_histograms: Annotated[Path, Output(studied("error_histograms.csv"))]
    """error_histograms.csv."""
    out_channels: Annotated[Path, Output(studied("error_channels.csv"))]
    """error_channels.csv."""


class StudyRollout(OfVariant):
    """Compute attention rollout of a few images."""

    stage: ClassVar[str] = "study_rollout"
    where: ClassVar[str] = "{model}/{variant}"

    out: Annotated[Path, Output(layout.ROLLOUT)]
    """rollout.safetensors."""


class StudyFusion(Job):
    """Time a model with and without fusion."""

    stage: ClassVar[str] = "study_fusion"
    runs_on: ClassVar[str] = "cpu"

    name: Annotated[str, Setting("{model}", recorded=False)]
    """What the table calls the model."""
    model: Annotated[
        Path, Input(layout.HEAVY, lambda folder: [folder / "model.onnx", *layout.fused_files(folder)])
    ]
    """Folder of model.onnx and the fused model."""
    recipe: Annotated[Path, _recipe(BASE)]
    """A recipe that names no role, block or operator."""
    bits: Annotated[str, Setting(lambda params, _: params.study.bits[0])]
    """Bits of weights and activations, such as w8a8."""
    images: Annotated[
        Path,
        Input(lambda params, w: layout.check_images(params, w.model)),
    ]
    """Calibration images."""
    calibration_count: int = 8
    """How many of them are used, at most."""
    rounds: Annotated[int, Setting("study.rounds")]
    """How often each graph is timed."""
    threads: Annotated[int, Setting("benchmark.threads")]
    """Threads of each executor."""
    out: Annotated[Path, Output(studied("fusion.csv"))]
    """fusion.csv."""
    out_operators: Annotated[Path, Output(studied("fusion_operators.csv"))]
    """fusion_operators.csv."""

    def parameters(self) -> dict[str, Any]:
        names = {"model": self.name, "recipe": load_recipe(self.recipe).name}
        return {**names, **super().parameters()}

    def found_out(self) -> tuple[str, ...]:
        return ("machine",)
