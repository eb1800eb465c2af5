"""The one definition of SQNR, top-1, agreement, cosine and KL, for every table. Without torch.

The noise-to-signal ratio of a set of images is the sum of squared errors over all of them, divided by the
sum of squares of the reference over all of them; SQNR is the same in decibels. So an image counts by its
energy, and neither the size of a batch nor the order of the images changes the figure.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ptq2themoon.evaluate.attention_query import FLOOR

Array = npt.NDArray[np.floating]
EPSILON = 1e-7  # keeps a ratio to zero signal finite, as PPQ does


def nsr(noise: float, signal: float) -> float:
    """Noise power over signal power of sums over all images; lower is better. PPQ calls it SNR."""
    return noise / (signal + EPSILON)


def sqnr_db(ratio: float) -> float:
    """Signal to quantization noise in decibels, -10 log10(nsr); higher is better; infinite without noise."""
    return math.inf if ratio <= 0 else -10 * math.log10(ratio)


def ranked(logits: Array, most: int = 1) -> npt.NDArray[np.intp]:
    """[N, most] classes of logits [N, classes], the best first; of equal logits the first class counts."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :most]


def percent(hits: npt.NDArray[np.bool_]) -> float:
    """The share of True."""
    return 100 * float(hits.mean())


def top1(logits: Array, labels: npt.NDArray[np.integer]) -> float:
    """Percent of images whose best class is their label [N]."""
    return percent(ranked(logits)[:, 0] == labels)


def agreement(logits: Array, reference: Array) -> float:
    """Percent of images whose best class is also the reference's."""
    return percent(ranked(logits)[:, 0] == ranked(reference)[:, 0])


def output_sqnr_db(found: Array, reference: Array) -> float | None:
    """Of outputs [N, ...] against those of the reference; None where they are equal."""
    wanted = reference.astype(np.float64)
    ratio = nsr(float(np.square(found - wanted).sum()), float(np.square(wanted).sum()))
    return sqnr_db(ratio) if ratio > 0 else None


def cosine(a: Array, b: Array) -> Array:
    """Similarity of vectors along the last axis; 0 where one is all zero. Higher is better."""
    a, b = (values.astype(np.float64) for values in (a, b))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)


def kl(quantized: Array, reference: Array) -> Array:
    """KL(quantized || reference) in nats along the last axis, of weights normalised to sum to one.

    Lower is better. In this direction a weight that quantization sets to zero counts nothing; in the
    other its share would be infinite, or be decided by a floor.
    """
    q, p = (_distribution(weights) for weights in (quantized, reference))
    return np.asarray((q * np.log(q / p)).sum(-1))


def _distribution(weights: Array) -> Array:
    floored = np.maximum(weights.astype(np.float64), FLOOR)
    return np.asarray(floored / floored.sum(-1, keepdims=True))
