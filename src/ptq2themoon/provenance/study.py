"""The study's results as their sidecars record them, with what params.yaml decides put in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ptq2themoon.provenance.results import Result
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.study_layout import PARTS, ablation_runs, study_files, table_rows

CALIBRATING = ("study_bits", "study_auto", "study_ablation")  # on the study's own draws


def study_results(params: Params, results: Path) -> list[Result]:
    """Every stage that left a sidecar in a folder of the study, each after those that it reads from.

    Parameters, seeds and files are those recorded, but for what `decided` says: the chain of files is
    checked as it is, and against params.yaml all that this decides.

    Raises:
        UserError: no such results, or sidecars that are none.
    """
    folders = [results / "study"]
    for model in params.models:
        folders += [results / model / "study", results / "models" / model / "study"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.sidecar.json"))]
    if not paths:
        raise UserError(f"{results}: holds no results of the study; run `snakemake study`")
    found = list(_in_order({path: _result(params, path) for path in paths}))
    made = {path for result in found for path in result.outputs}
    for path in _promised(params, results):
        if path not in made:
            raise UserError(f"{path}: no stage's sidecar tells of it; run `snakemake {path}`")
    return found


def _promised(params: Params, results: Path) -> Iterator[Path]:
    """What `snakemake study` makes with these parameters, and the runs behind its tables."""
    yield from study_files(params.models, results)
    for model in params.models:
        for part in dict.fromkeys(part for parts in PARTS.values() for part in parts):
            yield from (results / model / "study" / name for name in ablation_runs(params.study, [part]))


def decided(params: Params) -> Mapping[str, Mapping[str, Any]]:
    """By stage: parameters that params.yaml decides."""
    study, dpi = params.study, {"dpi": params.plots.dpi}
    on_images = {"images": study.images, "batch_size": params.evaluation.batch_size}
    calibrated = {**on_images, "calibration_batch_size": params.calibration.batch_size}
    inputs = {"images": study.input_images}
    colours = {**dpi, "colormap": params.plots.colormap, "rows": params.attention.images}
    return {
        "study_bits": {**calibrated, "bits": study.bits[1:], "loss": study.loss},
        "study_ablation": {**calibrated, "block": params.attention.block},
        "study_auto": {
            "images": study.ranking_images,
            "share": study.share,
            "batch_size": params.calibration.batch_size,
        },
        "study_activations": inputs,
        "study_errors": {**inputs, "block": study.block},
        "study_fusion": {"rounds": study.rounds},
        "study_models": {"models": list(params.models)},
        "study_fidelity": {"block": params.attention.block},
        "plot_study_activations": {**dpi, "block": study.block},
        "plot_study_ranking": {**dpi, "share": study.share},
        **{f"plot_study_{name}": dpi for name in ("ablation", "errors", "fusion", "models", "published")},
        **dict.fromkeys(("plot_attention", "plot_rollout"), colours),
    }


def _result(params: Params, sidecar: Path) -> Result:
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        stage, parameters, seed = record["stage"], record["parameters"], record["seed"]
        outputs, inputs = ([Path(path) for path in record[kind]] for kind in ("outputs", "inputs"))
        wanted = {**decided(params).get(stage, {}), **_of_output(params, outputs[0])}
        # A stage that knows nothing of a key gets no such key.
        expected = {name: wanted.get(name, value) for name, value in parameters.items()}
        if stage in CALIBRATING:
            inputs = [_drawn(params, path, seed) for path in inputs]
        return Result(stage, outputs, inputs, expected, seed=seed, device=record["device"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{sidecar}: no sidecar of a stage ({error}); run `snakemake study`") from None


def _drawn(params: Params, path: Path, seed: int | None) -> Path:
    """The calibration images that params.yaml asks for in place of those that were read."""
    if not path.name.startswith("calibration-"):
        return path
    study = params.study
    return path.with_stem(
        f"calibration-n{study.calibration_images}-s{study.seeds[0] if seed is None else seed}"
    )


def _of_output(params: Params, output: Path) -> dict[str, Any]:
    """Parameters that params.yaml decides by what an output of the ablation is called."""
    study = params.study
    if output.parent.name == "ablation":
        width, part, _ = output.stem.split("-")
        bits = {"bits": study.bits[0]} if width == "wide" else {}
        return bits | ({"recipes": list(study.recipes)} if part in ("input", "once") else {})
    variant = output.stem.removeprefix("ablation_")
    return {"recipes": table_rows(study, variant)} if output.stem != variant else {}


def _in_order(found: Mapping[Path, Result]) -> Iterator[Result]:
    maker = {path: sidecar for sidecar, result in found.items() for path in result.outputs}
    needs = {
        sidecar: {maker[path] for path in result.inputs if path in maker} - {sidecar}
        for sidecar, result in found.items()
    }
    try:
        for sidecar in TopologicalSorter(needs).static_order():
            yield found[sidecar]
    except CycleError as error:
        raise UserError(
            f"{error.args[1][0]}: made from what is made from it; run `snakemake study`"
        ) from None
