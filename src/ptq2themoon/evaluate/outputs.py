"""What a model gives for all evaluation images, computed once: the reference's and each simulation's outputs.

Each is a safetensors file that names what it was made from, so that none is taken for another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq2themoon.data.tensor_rows import RowsFile, TensorRows
from ptq2themoon.evaluate.accuracy import Floating, floating_metrics
from ptq2themoon.evaluate.attention import AttentionSpec, run_with_attention
from ptq2themoon.evaluate.evaluation_images import Evaluated
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.vocabulary.errors import UserError, at_least

VERSION = "1"


def floating_outputs(
    model: SimulatedModel, images: Evaluated, spec: AttentionSpec
) -> Iterator[dict[str, Tensor]]:
    """Of each batch, as a reference holds it.

    Args:
        model: without any quantization.
    """
    for pixels, _ in progress(images.batches, desc="floating point"):
        output, attention = run_with_attention(model, pixels, spec)
        yield {"output": output, "attention": attention}


@dataclass(frozen=True)
class Reference:
    """Outputs [N, ...] and a query's attention [N, groups, heads, patches] in floating point.

    Whole they stay in their file; an index reads the rows that it names.
    """

    output: Tensor | TensorRows
    attention: Tensor | TensorRows

    @classmethod
    def load(cls, path: Path, made_from: Mapping[str, str]) -> Reference:
        """Open what the reference stage wrote.

        Args:
            made_from: as `reference_of` gives it.

        Raises:
            UserError: no reference, or one of another model, of other images or of another block.
        """
        output, attention = open_rows(path, ("output", "attention"), made_from, "reference")
        return cls(output, attention)

    def at(self, indices: Sequence[int]) -> Reference:
        """The reference of the images at these rows of the manifest."""
        found = self.output, self.attention
        if isinstance(indices, range) and indices.step == 1 and isinstance(found[0], TensorRows):
            return Reference(*(rows.part(indices) for rows in found if isinstance(rows, TensorRows)))
        return Reference(*(rows[list(indices)] for rows in found))

    def batches(self, size: int) -> Iterator[Floating]:
        """Output and attention of so many images each, the last ones fewer."""
        at_least(1, size, "batch size")
        return zip(self.output.split(size), self.attention.split(size), strict=True)

    def metrics(self, images: Evaluated) -> Metrics:
        """Accuracy in floating point, where there is any."""
        outputs = self.output.split(images.batches.batch_size)
        batches = zip(outputs, images.labels(), strict=True)
        return floating_metrics(batches, images.classifier, images.labelled)


def reference_of(graph_sha256: str, manifest: Path, spec: AttentionSpec | None = None) -> dict[str, str]:
    """What a reference is made from: the fused graph, the list of images, and the operator of its attention.

    Args:
        spec: None for who does not read the attention.
    """
    made_from = {"graph": graph_sha256, "manifest": sha256(manifest)}
    return made_from if spec is None else {**made_from, "attention": spec.operator}


def simulation_of(qparams: Sequence[Path], manifest: Path) -> dict[str, str]:
    """What a simulation's outputs are made from; qparams.json names its graph."""
    return {"qparams": sha256(qparams[0]), "arrays": sha256(qparams[1]), "manifest": sha256(manifest)}


def runtime_of(int8: Sequence[Path], manifest: Path) -> dict[str, str]:
    """What outputs of INT8 models in the runtime are made from."""
    return {"int8": " ".join(map(sha256, int8)), "manifest": sha256(manifest)}


def load_simulated(path: Path, made_from: Mapping[str, str]) -> TensorRows:
    """Outputs [N, ...] of a quantized model.

    Raises:
        UserError: no such file, or one of other parameters or images.
    """
    (output,) = open_rows(path, ("output",), made_from, "evaluate")
    return output


def open_rows(path: Path, names: Sequence[str], made_from: Mapping[str, str], stage: str) -> list[TensorRows]:
    """Tensors of a file that a stage wrote with `output_file`.

    Raises:
        UserError: another file, or one made from something else.
    """
    again = f"run the {stage} stage again"
    try:
        found = [TensorRows(path, name) for name in names]
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: holds no outputs of the {stage} stage ({error}); {again}") from None
    if metadata.get("version") != VERSION:
        version = metadata.get("version", "missing")
        raise UserError(f"{path}: version: {version}; this ptq2themoon reads version {VERSION}; {again}")
    for key, value in made_from.items():
        if metadata.get(key) != value:
            raise UserError(f"{path}: was made for another {key} than is given; {again}")
    return found


def output_file(path: Path, images: int, made_from: Mapping[str, str]) -> RowsFile:
    """A file of what a model gives for so many images, to be filled batch by batch."""
    return RowsFile(path, images, {"version": VERSION, **made_from})
