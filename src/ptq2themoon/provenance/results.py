"""What params.yaml asks for: every result that must exist, and what its sidecar must record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ptq2themoon.data import open_source
from ptq2themoon.data.draw import EVALUATION_SEED
from ptq2themoon.vocabulary.model_source import Source
from ptq2themoon.vocabulary.parameters import Dataset, Model, Params
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe

ANY = object()
"""A value that the stage records and params.yaml does not decide."""


@dataclass(frozen=True)
class Result:
    """One run of a stage as its sidecar must show it.

    Attributes:
        outputs: the main one, beside which the sidecar lies, first.
        device: where it computes; None when it computes on none, `ANY` when params.yaml leaves it open.
    """

    stage: str
    outputs: Sequence[Path]
    inputs: Sequence[Path]
    parameters: dict[str, Any]
    seed: int | None = None
    device: Any = None


@dataclass(frozen=True)
class Run:
    """How a model is quantized."""

    recipe: Recipe
    bits: str
    images: int
    seed: int

    @property
    def folder(self) -> Path:
        return Path(self.recipe.name, f"{self.bits}-n{self.images}-s{self.seed}")


def expected_results(params: Params, recipes_dir: Path, results: Path) -> list[Result]:
    """All results of `params`, each after those that it is made from."""
    recipes = [load_recipe(recipes_dir / f"{name}.yaml") for name in params.recipes]
    sizes, seeds = [params.calibration.images], params.calibration.seeds
    runs = [Run(*parts) for parts in product(recipes, params.bits, sizes, seeds)]
    models = [ModelResults(params, results, name, runs) for name in params.models]
    found = [result for model in models for result in model.before_summary()]
    found.append(_summary(models, results))
    return found + [result for model in models for result in model.figures()]


def _summary(models: Sequence[ModelResults], results: Path) -> Result:
    inputs: list[Path] = []
    entries: list[list[Any]] = []
    for model in models:
        inputs += [folder / "metrics.json" for folder in model.folders]
        if model.params.deploy.modes:
            inputs += [model.runtime(run)[0] for run in model.runs]
        entries.append([model.name, "fp32", "fp32", None, None])
        entries += [[model.name, run.recipe.name, run.bits, run.images, run.seed] for run in model.runs]
    outputs = [results / f"summary.{kind}" for kind in ("csv", "md", "json")]
    return Result("summarize", outputs, inputs, {"entries": entries})


@dataclass(frozen=True)
class ModelResults:
    """The results of one model; what each method says stands in the script of the same name."""

    params: Params
    results: Path
    name: str
    runs: Sequence[Run]

    def before_summary(self) -> Iterator[Result]:
        yield self.export()
        for images, seed in dict.fromkeys(
            [self.params.calibration.check, *((run.images, run.seed) for run in self.runs)]
        ):
            yield self.draw_calibration(images, seed)
        yield self.fuse()
        yield self.list_evaluation()
        for run in self.runs:
            yield self.calibrate(run)
        yield self.reference()
        for run in self.runs:
            yield self.operator_errors(run)
        for run in self.runs:
            yield self.evaluate(run)
        for each in (None, *self.runs):
            yield self.attention_maps(each)
        for run in self.runs if self.params.deploy.modes else ():
            for mode in self.params.deploy.modes:
                yield self.deploy(run, mode)
            yield self.verify_runtime(run)

    def figures(self) -> Iterator[Result]:
        plots, errors = self.params.plots, self.params.errors
        modes = {"accumulated": errors.images, "local": errors.images, "logits": errors.logits_images}
        tables = [folder / "operators.csv" for folder in self.folders[1:]]
        parameters = {"recipes": ANY, "mode_images": modes, "worst": ANY, "dpi": plots.dpi}
        yield Result("plot_errors", self._figure("errors_along_network"), tables, parameters)

        parameters = {"model": self.name, "dpi": plots.dpi}
        yield Result("plot_top1", self._figure("top1"), [self.results / "summary.csv"], parameters)

        outputs = self._figure("attention_overview") + self._figure("attention_heads")
        maps = [self._maps(run) for run in (None, *self.runs)]
        parameters = {
            "graphs": ANY,
            "image_index": ANY,
            "rows": self.params.attention.images,
            "colormap": plots.colormap,
            "dpi": plots.dpi,
        }
        yield Result("plot_attention", outputs, [*maps, self.info], parameters)

    @property
    def model(self) -> Model:
        return self.params.models[self.name]

    @property
    def dataset(self) -> Dataset:
        return self.params.datasets[self.model.dataset]

    @property
    def heavy(self) -> Path:
        return self.results / "models" / self.name

    @property
    def info(self) -> Path:
        return self.heavy / "model.json"

    @property
    def fused(self) -> list[Path]:
        return [self.heavy / "fused.onnx", self.heavy / "fusion.json", self.info]

    @property
    def manifest(self) -> Path:
        return self.results / self.name / "evaluation.csv"

    @property
    def folders(self) -> list[Path]:
        """Where metrics lie: of floating point first, then of each run."""
        return [self._folder(run) for run in (None, *self.runs)]

    @property
    def _device(self) -> Any:
        return ANY if self.params.device == "auto" else self.params.device

    def _folder(self, run: Run | None) -> Path:
        return self.results / self.name / (run.folder if run else "fp32")

    def _figure(self, name: str) -> list[Path]:
        return [self.results / self.name / "figures" / f"{name}.{kind}" for kind in ("png", "svg")]

    def _maps(self, run: Run | None) -> Path:
        return self.heavy / (run.folder if run else "fp32") / "attention_maps.safetensors"

    @property
    def _reference(self) -> Path:
        return self.heavy / "fp32" / "reference.safetensors"

    def _simulated(self, run: Run) -> Path:
        return self.heavy / run.folder / "simulated.safetensors"

    @property
    def _evaluated(self) -> dict[str, Any]:
        """Parameters of every run over all evaluation images."""
        return {"batch_size": self.params.evaluation.batch_size, "block": self.params.attention.block}

    def _calibration(self, images: int, seed: int) -> Path:
        return self.heavy / f"calibration-n{images}-s{seed}.safetensors"

    def _qparams(self, run: Run | None) -> list[Path]:
        if run is None:
            return []
        return [self.heavy / run.folder / f"qparams{suffix}" for suffix in (".json", ".safetensors")]

    def _images(self, part: str) -> dict[str, str]:
        """Where the images for `calibration` or `evaluation` are."""
        path = Path(getattr(self.dataset, part))
        return {"kind": self.dataset.kind, "source": path.as_posix()}

    def _listed_images(self, part: str) -> tuple[list[Path], dict[str, str]]:
        """The files of images to hash, and what is recorded with where they are: of a folder its listing."""
        where = self._images(part)
        path, classes = Path(where["source"]), self.dataset.classes
        named = {"classes": classes} if classes else {}
        if self.dataset.kind in ("arrays", "csv"):
            return [path], where
        return [], {**where, **named, **open_source(self.dataset.kind, path, classes).identity()}

    def export(self) -> Result:
        model = self.model
        source = Source(model.source, Path(model.checkpoint) if model.checkpoint else None)
        parameters = {
            "source": model.source,
            "arguments": model.arguments,
            "exporter": None if source.onnx_file else model.exporter,
            "opset": None if source.onnx_file else model.opset,
            "preprocessing": model.preprocessing.given() if model.preprocessing else {},
            "classifier": model.classifier,
        }
        return Result("export", [self.heavy / "model.onnx", self.info], source.files(), parameters)

    def draw_calibration(self, images: int, seed: int) -> Result:
        files, listed = self._listed_images("calibration")
        outputs, inputs = [self._calibration(images, seed)], [self.info, *files]
        parameters = {**listed, "images": images, "seed": seed}
        return Result("draw_calibration", outputs, inputs, parameters, seed=seed)

    def fuse(self) -> Result:
        inputs = [self.heavy / "model.onnx", self.info, self._calibration(*self.params.calibration.check)]
        return Result("fuse", self.fused[:2], inputs, {"check_images": ANY})

    def list_evaluation(self) -> Result:
        files, listed = self._listed_images("evaluation")
        parameters = {**listed, "images": self.params.evaluation.images}
        return Result(
            "list_evaluation", [self.manifest], [self.info, *files], parameters, seed=EVALUATION_SEED
        )

    def calibrate(self, run: Run) -> Result:
        parameters = {
            "recipe": run.recipe.name,
            **run.recipe.resolved(),
            "bits": run.bits,
            "batch_size": self.params.calibration.batch_size,
        }
        inputs = [*self.fused, self._calibration(run.images, run.seed), *run.recipe.sources]
        return Result("calibrate", self._qparams(run), inputs, parameters, seed=run.seed, device=self._device)

    def reference(self) -> Result:
        outputs = [self._folder(None) / "metrics.json", self._reference]
        return self._on_test_images("reference", None, outputs, self._evaluated)

    def evaluate(self, run: Run) -> Result:
        folder = self._folder(run)
        outputs = [folder / "metrics.json", folder / "attention.csv", self._simulated(run)]
        return self._on_test_images("evaluate", run, outputs, self._evaluated, [self._reference])

    def operator_errors(self, run: Run) -> Result:
        outputs = [self._folder(run) / name for name in ("operators.csv", "ranking.json")]
        errors = self.params.errors
        parameters = {"images": errors.images, "logits_images": errors.logits_images, "batch_size": ANY}
        return self._on_test_images("operator_errors", run, outputs, parameters, [self._reference])

    def attention_maps(self, run: Run | None) -> Result:
        attention = self.params.attention
        parameters = {
            "recipe": run.recipe.name if run else "fp32",
            "images": attention.images,
            "block": attention.block,
        }
        return self._on_test_images("attention_maps", run, [self._maps(run)], parameters)

    def int8(self, run: Run, mode: str) -> list[Path]:
        return [self.heavy / run.folder / mode / name for name in ("int8.onnx", "deploy.json")]

    def runtime(self, run: Run) -> list[Path]:
        return [self._folder(run) / name for name in ("runtime.json", "runtime_operators.csv")]

    def deploy(self, run: Run, mode: str) -> Result:
        parameters = {"mode": mode, "profile": "onnxruntime"}
        return Result("deploy", self.int8(run, mode), [*self.fused, *self._qparams(run)], parameters)

    def verify_runtime(self, run: Run) -> Result:
        int8 = [path for mode in self.params.deploy.modes for path in self.int8(run, mode)]
        parameters = {"batch_size": self.params.evaluation.batch_size, "operator_images": ANY}
        more = [*int8, self._reference, self._simulated(run)]
        return self._on_test_images("verify_runtime", run, self.runtime(run), parameters, more)

    def _on_test_images(
        self,
        stage: str,
        run: Run | None,
        outputs: list[Path],
        parameters: dict[str, Any],
        more: Sequence[Path] = (),
    ) -> Result:
        files, _ = self._listed_images("evaluation")
        inputs = [*self.fused, self.manifest, *files, *self._qparams(run), *more]
        recorded = {**self._images("evaluation"), **parameters}
        return Result(stage, outputs, inputs, recorded, device=self._device)
