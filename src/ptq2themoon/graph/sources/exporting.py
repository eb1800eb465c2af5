"""A model as model.onnx and model.json: what the file gives is what its source gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.editing.one_message import check_model
from ptq2themoon.graph.editing.onnx_run import run_onnx, tolerated, where_not_finite
from ptq2themoon.graph.sources.checkpoints import first_line
from ptq2themoon.graph.sources.endings import refuse_other_numbers
from ptq2themoon.graph.sources.hub import fetched_weights
from ptq2themoon.graph.sources.onnx_files import one_line, read_graph
from ptq2themoon.graph.sources.onnx_model import onnx_facts, read_foreign
from ptq2themoon.graph.sources.repairs import state_output
from ptq2themoon.graph.sources.timm_model import load_model, preprocessing_of
from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary import onnx_data
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.model_source import LOCAL, Exporter, Source, opset_problem
from ptq2themoon.vocabulary.onnx_data import constant_problem
from ptq2themoon.vocabulary.validation import validate

CHECK_IMAGES = 4
SEED = 0
OTHER_EXPORTER = {
    "torchscript": "exporter: dynamo, opset: 18",
    "dynamo": "exporter: torchscript, opset: 17",
}
EXPORTERS = ("torch.onnx", "torch.export", "onnxscript")  # loggers that speak of tracing and of their age


def export(spec: Source, exporter: Exporter, opset: int, path: Path, name: str | None = None) -> ModelInfo:
    """Write the ONNX file, its batch dimension free if it can be; return what model.json records.

    Args:
        name: as `write_model` takes it.

    Raises:
        UserError: a source that cannot be used, or an exported graph that differs from it by more than 1e-4.
    """
    if spec.onnx_file:
        with one_line(spec.onnx_file):
            return _export_file(spec, spec.onnx_file, path, name)
    problem = opset_problem(exporter, opset)
    if problem:
        raise UserError(f"opset {opset}: {problem}")
    return _export_timm(load_model(spec), spec, exporter, opset, path, name)


def _export_timm(
    model: nn.Module, spec: Source, exporter: Exporter, opset: int, path: Path, name: str | None
) -> ModelInfo:
    sizes = [value.numel() * value.element_size() for value in model.state_dict().values()]
    if problem := constant_problem(max(sizes, default=0)):
        raise UserError(f"model {spec.source!r}: {problem}")
    preprocessing = preprocessing_of(model, spec)
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(CHECK_IMAGES, *preprocessing["input_size"], generator=generator)
    expected = _outputs(model, images, spec)
    kind = output_kind(expected, spec.classifier and getattr(model, "num_classes", 1) != 0)
    with _place(path, large=sum(sizes) > onnx_data.MOST_BYTES) as made:
        try:
            with quiet(*EXPORTERS, stdout=True, native=True):
                (_torchscript if exporter == "torchscript" else _dynamo)(model, images[:2], kind, opset, made)
        except Exception as error:
            reason = first_line(error)
            other = OTHER_EXPORTER[exporter]
            raise UserError(
                f"model {spec.source!r}: torch.onnx.export ({exporter}, opset {opset}) failed ({reason}); "
                f"try the other exporter: `{other}`"
            ) from error
        onnx.checker.check_model(made, full_check=True)
        found = run_onnx(made, images.numpy())
        if made != path:
            write_model(read_graph(made), path, name)
    pretrained = getattr(model, "pretrained_cfg", {})
    names = pretrained.get("label_names") or None
    facts = {
        "architecture": pretrained.get("architecture"),
        "weights": _weights(model, spec),
        "exporter": exporter,
        "opset": opset,
        "input_size": preprocessing["input_size"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "preprocessing": preprocessing,
        "label_names": list(names) if isinstance(names, tuple) else names,
    }
    return _described(spec, kind, facts, expected, found)


@contextmanager
def _place(path: Path, *, large: bool) -> Iterator[Path]:
    """Where torch writes the model: with files of its own beside it, a folder for the time."""
    if not large:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        yield Path(folder, "model.onnx")


def _outputs(model: nn.Module, images: Tensor, spec: Source) -> np.ndarray:
    size = "x".join(map(str, images.shape[1:]))
    try:
        with torch.no_grad():  # what a model keeps of an inference cannot be exported
            outputs = model(images)
    except Exception as error:  # whatever the model's own code raises
        raise UserError(
            f"model {spec.source!r}: takes no images of {size} ({first_line(error)}); "
            "give the size that it is made for as `preprocessing: {input_size: [C, H, W]}`"
        ) from None
    if not isinstance(outputs, Tensor):
        raise UserError(f"model {spec.source!r}: gives a {type(outputs).__name__}; one tensor is needed")
    return outputs.numpy()


def _torchscript(model: nn.Module, images: Tensor, output: str, opset: int, path: Path) -> None:
    place = str(path)  # only a text is taken for a place where more than 2 GB can lie in files of their own
    torch.onnx.export(
        model, (images[:1],), place, opset_version=opset, dynamo=False,
        input_names=["images"], output_names=[output],
        dynamic_axes={"images": {0: "batch"}, output: {0: "batch"}},
    )  # fmt: skip


def _dynamo(model: nn.Module, images: Tensor, output: str, opset: int, path: Path) -> None:
    torch.onnx.export(
        model, (images,), path, opset_version=opset, dynamo=True, verbose=False, external_data=False,
        input_names=["images"], output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),  # a batch of one would be taken for a constant
    )  # fmt: skip


def _export_file(spec: Source, source: Path, path: Path, name: str | None) -> ModelInfo:
    foreign = read_foreign(source, spec)
    rng = np.random.default_rng(SEED)
    images = rng.standard_normal((CHECK_IMAGES, *foreign.input_size)).astype(np.float32)
    expected = run_onnx(foreign.original, images, at_once=1)  # no image may change another's output
    if not np.isfinite(expected).all():
        where = where_not_finite(foreign.original, images)
        raise UserError(f"{source}: gives values that are not finite on random images{where}")
    refuse_other_numbers(expected, spec.classifier, foreign.output, source)
    state_output(foreign.model, foreign.output, expected.shape)
    check_model(foreign.model, full=True)
    found = run_onnx(foreign.model, images)
    write_model(foreign.model, path, name)
    facts = onnx_facts(foreign, source, spec)
    return _described(spec, output_kind(expected, spec.classifier), facts, expected, found)


def output_kind(outputs: np.ndarray, classifier: bool) -> str:
    """`logits` [images, classes] of a model with a classifier; all else is `features`."""
    return "logits" if classifier and outputs.ndim == 2 else "features"


def _described(
    spec: Source, kind: str, facts: dict[str, Any], expected: np.ndarray, found: np.ndarray
) -> ModelInfo:
    """model.json: `facts`, and what the outputs say.

    Raises:
        UserError: outputs of another shape, or that differ by more than 1e-4.
    """
    if expected.shape != found.shape or len(expected) != CHECK_IMAGES:
        raise UserError(
            f"model {spec.source!r}: {CHECK_IMAGES} images give an output of {list(found.shape)}, "
            f"expected {list(expected.shape)}; its first dimension must be the images"
        )
    difference = float(np.abs(found - expected).max())
    logits = expected.tolist() if kind == "logits" else None  # features can be millions of numbers
    most = tolerated(expected)
    if not difference <= most:
        raise UserError(f"model {spec.source!r}: exported {kind} differ by {difference:.2g} (> {most:.2g})")
    info = {
        "source": spec.source,
        "output": kind,
        "num_classes": int(expected.shape[-1]) if kind == "logits" else None,
        **facts,
        "max_abs_logit_difference": difference,
        "check": {"images": CHECK_IMAGES, "seed": SEED, "logits": logits},
    }
    return validate(ModelInfo, info, f"model {spec.source!r}")


def _weights(model: nn.Module, spec: Source) -> dict[str, Any]:
    """What was loaded; the bytes of local files are in the sidecar."""
    if spec.checkpoint is not None:
        return {"file": spec.checkpoint.as_posix()}
    if spec.source.startswith(LOCAL):
        return {"folder": spec.source.removeprefix(LOCAL)}
    return fetched_weights(model, spec.arguments.get("cache_dir"))
