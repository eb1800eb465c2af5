"""The stages from quantization parameters to an INT8 model that a runtime was seen to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Machine, Output, Parts, Setting
from ptq2themoon.vocabulary.modes import Mode, Profile
from ptq2themoon.vocabulary.stages.common import EvaluationSource, OnDataset, OnImages, OnModel, Qparams
from ptq2themoon.vocabulary.stages.evaluate import OF_RUN, BatchSize, OfShard, ReferenceFile


class Deploy(OnModel):
    """Write an INT8 model."""

    stage: ClassVar[str] = "deploy"
    where: ClassVar[str] = f"{OF_RUN}/{{mode}}"

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    mode: Annotated[Mode, Setting("{mode}")]
    """faithful: all that the recipe quantizes; fast: what integer kernels make faster."""
    profile: Profile = "onnxruntime"
    """The runtime that the file is for."""
    out: Annotated[Path, Output(layout.INT8)]
    """int8.onnx."""
    out_report: Annotated[Path, Output(layout.DEPLOYED)]
    """deploy.json."""


def of_modes(pattern: str) -> Input:
    """The file of each mode that params.yaml asks for."""

    def files(params: Any, wildcards: Any) -> list[str]:
        each = (layout.fill(pattern.replace("{mode}", mode), wildcards) for mode in params.deploy.modes)
        return list(each)

    return Input(files)


class VerifyRuntime(OnImages):
    """Run the INT8 models in ONNX Runtime, and compare them with the simulation, whole and by operator."""

    stage: ClassVar[str] = "verify_runtime"
    where: ClassVar[str] = OF_RUN

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    int8: Annotated[tuple[Path, ...], of_modes(layout.INT8)]
    """int8.onnx of each mode."""
    deployed: Annotated[tuple[Path, ...], of_modes(layout.DEPLOYED)]
    """deploy.json beside each."""
    reference: ReferenceFile
    """reference.safetensors."""
    simulated: Annotated[Path, Input(layout.SIMULATED)]
    """simulated.safetensors."""
    batch_size: BatchSize
    """Images in a batch."""
    operator_images: int = 4
    """For the comparison by operator."""
    threads: Annotated[int, Machine("{threads}")] = 1
    """Of the runtime."""
    parts: Annotated[tuple[Path, ...], Parts(layout.RUNTIME_PART)] = ()
    """What shards found, in their order; left out: computed here."""
    out: Annotated[Path, Output(layout.RUNTIME)]
    """runtime.json."""
    out_operators: Annotated[Path, Output(layout.RUNTIME_OPERATORS)]
    """runtime_operators.csv."""


class RuntimePart(OnModel, OnDataset, OfShard):
    """Run the INT8 models in ONNX Runtime on one shard of the evaluation images."""

    stage: ClassVar[str] = "runtime_part"
    where: ClassVar[str] = f"{OF_RUN}/{{scatteritem}}"
    runs_on: ClassVar[str | None] = "cpu"

    manifest: Annotated[Path, Input(layout.MANIFEST)]
    """evaluation.csv."""
    source: EvaluationSource
    """The data set."""
    int8: Annotated[tuple[Path, ...], of_modes(layout.INT8)]
    """int8.onnx of each mode."""
    modes: Annotated[tuple[Mode, ...], Setting("deploy.modes")]
    """Their names."""
    batch_size: BatchSize
    """Images in a batch."""
    threads: Annotated[int, Machine("{threads}")] = 1
    """Of the runtime."""
    out: Annotated[Path, Output(layout.RUNTIME_PART)]
    """A safetensors file."""
