"""Accuracy of a model over an evaluation set, and its agreement with floating point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ptq2themoon.errors import UserError
from ptq2themoon.evaluate.attention import AttentionSpec, fidelity, run_with_attention
from ptq2themoon.evaluate.errors import ErrorMeter, sqnr_db
from ptq2themoon.progress import progress
from ptq2themoon.quantize.simulation import SimulatedModel


@dataclass
class _Counter:
    """Sums over the images seen."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    agreement: int = 0
    loss: float = 0.0

    def add(self, logits: Tensor, reference: Tensor, labels: Tensor) -> None:
        if not bool((torch.isfinite(logits) & torch.isfinite(reference)).all()):
            raise UserError("the model gives logits that are not finite")
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        self.images += len(labels)
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(1).sum())
        self.agreement += int((ranked[:, 0] == reference.argmax(1)).sum())
        self.loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))

    def metrics(self) -> dict[str, float | int | None]:
        n = self.images
        return {
            "images": n,
            "top1": 100 * self.top1 / n,
            "top5": 100 * self.top5 / n,
            "loss": self.loss / n,
            "agreement": 100 * self.agreement / n,
        }


@dataclass
class Evaluation:
    """Metrics over all images, and one row an image of attention fidelity (empty without class token)."""

    metrics: dict[str, float | int | None]
    attention: pd.DataFrame = field(default_factory=pd.DataFrame)


def evaluate_float(model: SimulatedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Accuracy in floating point; the last partial batch counts.

    Args:
        batches: images [B, C, H, W], normalised, and labels [B].
    """
    counter = _Counter()
    with model.only(()):
        for images, labels in progress(batches, desc="evaluate fp32"):
            logits = model(images).cpu()
            counter.add(logits, logits, labels)
    nothing = dict.fromkeys(("logits_nsr", "logits_sqnr_db", "attention_cosine", "attention_kl"))
    return Evaluation({**counter.metrics(), **nothing})


def evaluate_quantized(
    model: SimulatedModel, batches: Iterable[tuple[Tensor, Tensor]], spec: AttentionSpec | None
) -> Evaluation:
    """Accuracy; agreement, error of the logits and attention, against floating point on the same images."""
    counter, meter = _Counter(), ErrorMeter()
    cosines, divergences, seen = [], [], []
    for images, labels in progress(batches, desc="evaluate quantized"):
        with model.only(()):
            reference, expected = _run(model, images, spec)
        logits, attention = _run(model, images, spec)
        counter.add(logits, reference, labels)
        meter.add(logits, reference)
        seen.append(labels)
        if attention is not None and expected is not None:
            cosine, kl = fidelity(attention, expected)
            cosines.append(cosine)
            divergences.append(kl)
    nsr = meter.summary()["nsr"]
    table = _attention_table(torch.cat(seen), cosines, divergences)
    return Evaluation(
        {
            **counter.metrics(),
            "logits_nsr": nsr,
            "logits_sqnr_db": sqnr_db(nsr) if nsr > 0 else None,
            "attention_cosine": float(table["cosine"].mean()) if len(table) else None,
            "attention_kl": float(table["kl"].mean()) if len(table) else None,
        },
        table,
    )


def _run(model: SimulatedModel, images: Tensor, spec: AttentionSpec | None) -> tuple[Tensor, Tensor | None]:
    """Logits, and class-token attention [B, heads, patches] where the model has a class token."""
    return (model(images).cpu(), None) if spec is None else run_with_attention(model, images, spec)


def _attention_table(labels: Tensor, cosines: list[Tensor], divergences: list[Tensor]) -> pd.DataFrame:
    if not cosines:
        return pd.DataFrame(columns=["image", "label", "cosine", "kl"])
    return pd.DataFrame(
        {
            "image": range(len(labels)),
            "label": labels.tolist(),
            "cosine": torch.cat(cosines).double().tolist(),
            "kl": torch.cat(divergences).double().tolist(),
        }
    )
