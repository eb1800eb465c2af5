"""What the model gives in floating point on the study's images, computed once for all quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.accuracy import (
    AccuracyCounter,
    Evaluation,
    Floating,
    evaluate_quantized,
    floating_point,
)
from ptq2themoon.evaluate.arguments import Evaluated
from ptq2themoon.evaluate.attention import AttentionSpec
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel


@dataclass(frozen=True)
class Reference:
    """Outputs [N, ...] and the query's attention [N, groups, heads, patches] in floating point."""

    output: Tensor
    attention: Tensor

    @classmethod
    def of(cls, model: SimulatedModel, images: Evaluated, spec: AttentionSpec) -> Reference:
        found = [
            floating_point(model, pixels, spec)
            for pixels, _ in progress(images.batches, desc="floating point")
        ]
        return cls(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            UserError: a file that is no reference.
        """
        try:
            found = load_file(path)
            return cls(found["output"], found["attention"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{path}: no reference of the study ({error}); run study_reference again"
            ) from None

    def save(self, path: Path) -> None:
        save_file({"output": self.output.contiguous(), "attention": self.attention.contiguous()}, path)

    def evaluate(self, model: SimulatedModel, images: Evaluated, spec: AttentionSpec) -> Evaluation:
        """A quantized model on the same images.

        Raises:
            UserError: other images than those of the reference.
        """
        count = len(images.batches.rows)
        if count != len(self.output):
            raise UserError(
                f"the reference is of {len(self.output)} images, not {count}; run study_reference again"
            )
        return evaluate_quantized(
            model,
            images.batches,
            spec,
            images.classifier,
            images.labelled,
            self._batches(images.batches.batch_size),
        )

    def metrics(self, images: Evaluated) -> dict[str, float | int | None]:
        """Accuracy in floating point, where there is any."""
        counter = AccuracyCounter(images.classifier, images.labelled)
        labels = torch.tensor([row.label for row in images.batches.rows])
        counter.add(self.output, self.output, labels)
        return counter.metrics()

    def _batches(self, size: int) -> Iterator[Floating]:
        yield from zip(self.output.split(size), self.attention.split(size), strict=True)
