"""Accuracy of a model over an evaluation set, and how its output differs from floating point's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.evaluate.attention import AttentionSpec, fidelity, run_with_attention
from ptq2themoon.evaluate.error_meter import ErrorMeter
from ptq2themoon.evaluate.metrics import ranked
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

COMPARISONS = ("logits_nsr", "logits_sqnr_db", "output_cosine", "attention_cosine", "attention_kl")
Floating = tuple[Tensor, Tensor]  # output [B, ...] and the query's attention, as `run_with_attention` gives


def are_labelled(labels: Sequence[int], manifest: Path) -> bool:
    """Whether the images of a manifest have labels (-1: unknown), so that accuracy can be measured.

    Raises:
        UserError: some have one and some have none.
    """
    unknown = sum(label < 0 for label in labels)
    if 0 < unknown < len(labels):
        raise UserError(
            f"{manifest}: {unknown} of {len(labels)} images have no label; give all of them one, or none"
        )
    return not unknown


@dataclass
class AccuracyCounter:
    """Sums over the images seen; `classifier`: outputs are logits [B, classes]; `labelled`: all have one."""

    classifier: bool
    labelled: bool
    images: int = 0
    top1: int = 0
    top5: int = 0
    agreement: int = 0
    loss: float = 0.0

    def add(self, output: Tensor, reference: Tensor, labels: Tensor) -> None:
        """Count one batch: outputs and the reference's [B, classes], labels [B]; raises `UserError`."""
        if not bool((torch.isfinite(output) & torch.isfinite(reference)).all()):
            what = "logits" if self.classifier else "outputs"
            raise UserError(f"the model gives {what} that are not finite")
        self.images += len(labels)
        if not self.classifier:
            return
        if output.ndim != 2:
            raise UserError(
                f"the model gives {list(output.shape[1:])} per image, not one logit per class; "
                "say `classifier: false` in params.yaml"
            )
        best = ranked(output.numpy(), 5)
        self.agreement += int((best[:, :1] == ranked(reference.numpy())).sum())
        if not self.labelled:
            return
        hits = best == labels.numpy()[:, None]
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(1).sum())
        self.loss += float(F.cross_entropy(output.double(), labels, reduction="sum"))

    def figures(self) -> dict[str, Any]:
        """The first keys of `Metrics`."""
        n, accuracy = self.images, self.classifier and self.labelled
        return {
            "images": n,
            "top1": 100 * self.top1 / n if accuracy else None,
            "top5": 100 * self.top5 / n if accuracy else None,
            "loss": self.loss / n if accuracy else None,
            "agreement": 100 * self.agreement / n if self.classifier else None,
        }


@dataclass
class Evaluation:
    """Of a quantized model on all images.

    Attributes:
        attention: one row per image.
        output: [N, ...].
    """

    metrics: Metrics
    attention: pd.DataFrame
    output: Tensor


def floating_metrics(
    output: Tensor, labels: Tensor, classifier: bool = True, labelled: bool = True
) -> Metrics:
    """Accuracy in floating point, where there is any.

    Args:
        output: [N, ...].
        labels: [N].
        classifier: False for outputs that are no logits.
        labelled: False for images without labels.
    """
    counter = AccuracyCounter(classifier, labelled)
    counter.add(output, output, labels)
    return _metrics(counter, dict.fromkeys(COMPARISONS))


def evaluate_quantized(
    model: SimulatedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    references: Iterable[Floating],
    spec: AttentionSpec,
    classifier: bool = True,
    labelled: bool = True,
) -> Evaluation:
    """Accuracy, where there is any; output and attention against the reference's on the same images.

    Args:
        batches: images [B, C, H, W], normalised, and labels [B]; the last partial batch counts.
        references: in floating point, of each batch.
        classifier: False for outputs that are no logits.
        labelled: False for images without labels.

    """
    counter, meter = AccuracyCounter(classifier, labelled), ErrorMeter()
    rows: list[pd.DataFrame] = []
    outputs: list[Tensor] = []
    known = iter(references)
    for images, labels in progress(batches, desc="evaluate quantized"):
        reference, expected = next(known)
        output, attention = run_with_attention(model, images, spec)
        counter.add(output, reference, labels)
        meter.add(output, reference, len(images))
        rows.append(_attention_rows(labels, spec, attention, expected))
        outputs.append(output)
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "image", range(len(table)))
    error = meter.summary()
    compared = (
        error["nsr"],
        error["sqnr_db"] if error["nsr"] > 0 else None,
        error["cosine"],
        float(table["cosine"].mean()),
        float(table["kl"].mean()),
    )
    metrics = _metrics(counter, dict(zip(COMPARISONS, compared, strict=True)))
    return Evaluation(metrics, table, torch.cat(outputs))


def _metrics(counter: AccuracyCounter, compared: dict[str, Any]) -> Metrics:
    return Metrics(**counter.figures(), **compared)


def _attention_rows(
    labels: Tensor, spec: AttentionSpec, quantized: Tensor, reference: Tensor
) -> pd.DataFrame:
    cosine, kl = fidelity(quantized, reference)
    return pd.DataFrame(
        {
            "label": labels.tolist(),
            "query": spec.query,
            "cosine": cosine.double().tolist(),
            "kl": kl.double().tolist(),
        }
    )
