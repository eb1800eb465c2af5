"""The study's results as their sidecars record them, with what params.yaml decides put in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ptq2themoon.config import Params
from ptq2themoon.errors import UserError
from ptq2themoon.provenance.results import Result


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
    return list(_in_order({path: _result(params, path) for path in paths}))


def decided(params: Params) -> Mapping[str, Mapping[str, Any]]:
    """By stage: parameters that params.yaml decides."""
    study, dpi = params.study, {"dpi": params.plots.dpi}
    on_images = {"images": study.images, "batch_size": params.evaluation.batch_size}
    calibrated = {**on_images, "calibration_batch_size": params.calibration.batch_size}
    inputs = {"images": study.input_images}
    colours = {**dpi, "colormap": params.plots.colormap, "rows": params.attention.images}
    return {
        "study_reference": {**on_images, "block": params.attention.block},
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
        "plot_study_activations": {**dpi, "block": study.block},
        "plot_study_ranking": {**dpi, "share": study.share},
        **{f"plot_study_{name}": dpi for name in ("ablation", "errors", "fusion", "models")},
        **dict.fromkeys(("plot_attention", "plot_rollout"), colours),
    }


def _result(params: Params, sidecar: Path) -> Result:
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        stage, parameters = record["stage"], record["parameters"]
        outputs, inputs = ([Path(path) for path in record[kind]] for kind in ("outputs", "inputs"))
        wanted = decided(params).get(stage, {})
        # A stage that knows nothing of a key gets no such key.
        return Result(
            stage,
            outputs,
            inputs,
            {name: wanted.get(name, value) for name, value in parameters.items()},
            seed=record["seed"],
            device=record["device"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{sidecar}: no sidecar of a stage ({error}); run `snakemake study`") from None


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
