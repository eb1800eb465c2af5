"""The stages from quantization parameters to an INT8 model and its check in a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Machine, Output, Parts, Setting
from ptq2themoon.vocabulary.modes import Mode, Profile
from ptq2themoon.vocabulary.stages.common import EvaluationSource, OnDataset, OnImages, OnModel, Qparams
from ptq2themoon.vocabulary.stages.evaluate import OF_RUN, BatchSize, OfShard, ReferenceFile


class Deploy(OnModel):
    """Write an INT8 model as ONNX."""

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
    """Run the INT8 models in ONNX Runtime, and compare whole models and operators with the simulation."""

    stage: ClassVar[str] = "verify_runtime"
    where: ClassVar[str] = OF_RUN

    qparams: Qparams
    """qparams.json and qparams.safetensors."""
    int8: Annotated[tuple[Path, ...], of_modes(layout.INT8)]
    """int8.onnx of each mode."""
    deployed: Annotated[tuple[Path, ...], of_modes(layout.DEPLOYED)]
    """deploy.json of each mode."""
    reference: ReferenceFile
    """reference.safetensors."""
    simulated: Annotated[Path, Input(layout.SIMULATED)]
    """simulated.safetensors."""
    batch_size: BatchSize
    """Images in a batch."""
    operator_images: int = 4
    """Images for the comparison of operators."""
    threads: Annotated[int, Machine("{threads}")] = 1
    """Threads of the runtime."""
    parts: Annotated[tuple[Path, ...], Parts(layout.RUNTIME_PART)] = ()
    """Results of the shards, in order; without them, this stage computes all."""
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
    """evaluation.csv: the list of evaluation images."""
    source: EvaluationSource
    """The data set: file, folder or NAME:SPLIT:ROOT."""
    int8: Annotated[tuple[Path, ...], of_modes(layout.INT8)]
    """int8.onnx of each mode."""
    modes: Annotated[tuple[Mode, ...], Setting("deploy.modes")]
    """The modes, in the same order."""
    batch_size: BatchSize
    """Images in a batch."""
    threads: Annotated[int, Machine("{threads}")] = 1
    """Threads of the runtime."""
    out: Annotated[Path, Output(layout.RUNTIME_PART)]
    """The results of the shard, a safetensors file."""
