"""Accuracy of a model over an evaluation set, and how its output differs from floating point's."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
    """Counts of the images seen, and the loss of each.

    Attributes:
        classifier: whether outputs are logits [B, classes].
        labelled: whether all images have a label.
    """

    classifier: bool
    labelled: bool
    images: int = 0
    top1: int = 0
    top5: int = 0
    agreement: int = 0
    losses: array[float] = field(default_factory=lambda: array("d"))

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
        self.losses.extend(F.cross_entropy(output.double(), labels, reduction="none").tolist())

    def figures(self) -> dict[str, Any]:
        """The first keys of `Metrics`."""
        n, accuracy = self.images, self.classifier and self.labelled
        return {
            "images": n,
            "top1": 100 * self.top1 / n if accuracy else None,
            "top5": 100 * self.top5 / n if accuracy else None,
            "loss": math.fsum(self.losses) / n if accuracy else None,
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


class Compared(NamedTuple):
    """What a quantized model gives for a batch of B images, beside the reference.

    Attributes:
        output, reference: [B, ...].
        cosine, kl: of the query's attention against the reference's, float64 [B], as `fidelity` gives them.
        labels: [B].
    """

    output: Tensor
    reference: Tensor
    cosine: Tensor
    kl: Tensor
    labels: Tensor


def floating_metrics(
    batches: Iterable[tuple[Tensor, Tensor]], classifier: bool = True, labelled: bool = True
) -> Metrics:
    """Accuracy in floating point, where there is any.

    Args:
        batches: outputs [B, ...] and labels [B].
        classifier: False for outputs that are no logits.
        labelled: False for images without labels.
    """
    counter = AccuracyCounter(classifier, labelled)
    for output, labels in batches:
        counter.add(output, output, labels)
    return _metrics(counter, dict.fromkeys(COMPARISONS))


def compared(
    model: SimulatedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    references: Iterable[Floating],
    spec: AttentionSpec,
) -> Iterator[Compared]:
    """Run a quantized model.

    Args:
        batches: images [B, C, H, W], normalised, and labels [B]; the last partial batch counts.
        references: in floating point, of each batch.
    """
    known = iter(references)
    for images, labels in progress(batches, desc="evaluate quantized"):
        reference, expected = next(known)
        output, attention = run_with_attention(model, images, spec)
        cosine, kl = (values.double() for values in fidelity(attention, expected))
        yield Compared(output, reference, cosine, kl, labels)


def measured(
    batches: Iterable[Compared], query: str, classifier: bool = True, labelled: bool = True
) -> tuple[Metrics, pd.DataFrame]:
    """Accuracy, where there is any; output and attention against the reference's, one row per image.

    A figure is a count, or made of what is kept of each image: it is the same, to the bit, however the
    batches were shared out over jobs.

    Args:
        query: whose attention it is.
        classifier: False for outputs that are no logits.
        labelled: False for images without labels.
    """
    counter, meter = AccuracyCounter(classifier, labelled), ErrorMeter()
    rows = {name: array(kind) for name, kind in (("label", "q"), ("cosine", "d"), ("kl", "d"))}
    for batch in batches:
        counter.add(batch.output, batch.reference, batch.labels)
        meter.add(batch.output, batch.reference, len(batch.labels))
        for name, values in zip(rows, (batch.labels, batch.cosine, batch.kl), strict=True):
            rows[name].extend(values.tolist())
    table = pd.DataFrame({"image": range(counter.images), "label": rows["label"], "query": query})
    table = table.assign(cosine=rows["cosine"], kl=rows["kl"])
    error = meter.summary()
    found = (
        error["nsr"],
        error["sqnr_db"] if error["nsr"] > 0 else None,
        error["cosine"],
        float(table["cosine"].mean()),
        float(table["kl"].mean()),
    )
    return _metrics(counter, dict(zip(COMPARISONS, found, strict=True))), table


def passing(batches: Iterable[Compared], keep: Callable[[Tensor], None]) -> Iterator[Compared]:
    """The same batches, the output of each given to `keep`."""
    for batch in batches:
        keep(batch.output)
        yield batch


def evaluate_quantized(
    model: SimulatedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    references: Iterable[Floating],
    spec: AttentionSpec,
    classifier: bool = True,
    labelled: bool = True,
) -> Evaluation:
    """What `measured` finds of what `compared` runs, and all outputs, which must fit in memory."""
    outputs: list[Tensor] = []
    found = passing(compared(model, batches, references, spec), outputs.append)
    metrics, table = measured(found, spec.query, classifier, labelled)
    return Evaluation(metrics, table, torch.cat(outputs))


def _metrics(counter: AccuracyCounter, compared: dict[str, Any]) -> Metrics:
    return Metrics(**counter.figures(), **compared)
