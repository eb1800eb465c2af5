"""What a model gives for all evaluation images, computed once: the reference's and each simulation's outputs.

Each is a safetensors file that names what it was made from, so that none is taken for another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq2themoon.evaluate.accuracy import Floating, floating_metrics
from ptq2themoon.evaluate.attention import AttentionSpec, run_with_attention, write_tensors
from ptq2themoon.evaluate.evaluation_images import Evaluated
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.stage import sha256
from ptq2themoon.vocabulary.errors import UserError, at_least

VERSION = "1"


@dataclass(frozen=True)
class Reference:
    """Outputs [N, ...] and a query's attention [N, groups, heads, patches] in floating point."""

    output: Tensor
    attention: Tensor

    @classmethod
    def of(cls, model: SimulatedModel, images: Evaluated, spec: AttentionSpec) -> Reference:
        """Of all the images.

        Args:
            model: without any quantization.
        """
        found = [
            run_with_attention(model, pixels, spec)
            for pixels, _ in progress(images.batches, desc="floating point")
        ]
        return cls(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @classmethod
    def load(cls, path: Path, made_from: Mapping[str, str]) -> Reference:
        """Read what `save` wrote.

        Args:
            made_from: as `reference_of` gives it.

        Raises:
            UserError: no reference, or one of another model, of other images or of another block.
        """
        found = _load(path, ("output", "attention"), made_from, "reference")
        return cls(found["output"], found["attention"])

    def save(self, path: Path, made_from: Mapping[str, str]) -> None:
        """Write output and attention with the sums that they were made from."""
        tensors = {"output": self.output, "attention": self.attention}
        write_tensors(path, tensors, {"version": VERSION, **made_from})

    def at(self, indices: Sequence[int]) -> Reference:
        """The reference of the images at these rows of the manifest."""
        if list(indices) == list(range(len(self.output))):
            return self
        chosen = list(indices)
        return Reference(self.output[chosen], self.attention[chosen])

    def batches(self, size: int) -> list[Floating]:
        """Output and attention of so many images each, the last ones fewer."""
        at_least(1, size, "batch size")
        return list(zip(self.output.split(size), self.attention.split(size), strict=True))

    def metrics(self, images: Evaluated) -> Metrics:
        """Accuracy in floating point, where there is any."""
        labels = torch.tensor([row.label for row in images.batches.rows])
        return floating_metrics(self.output, labels, images.classifier, images.labelled)


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


def save_simulated(path: Path, output: Tensor, made_from: Mapping[str, str]) -> None:
    """Write outputs [N, ...] of a quantized model."""
    write_tensors(path, {"output": output}, {"version": VERSION, **made_from})


def load_simulated(path: Path, made_from: Mapping[str, str]) -> Tensor:
    """Read what `save_simulated` wrote.

    Raises:
        UserError: no such file, or one of other parameters or images.
    """
    return _load(path, ("output",), made_from, "evaluate")["output"]


def _load(path: Path, names: Sequence[str], made_from: Mapping[str, str], stage: str) -> dict[str, Tensor]:
    again = f"run the {stage} stage again"
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in names}
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
