"""How near a model's logits are to those of FP32, and to the labels."""

from __future__ import annotations

import numpy as np


def fidelity(found: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> dict[str, float | None]:
    """Top-1 and agreement in percent, SQNR in dB.

    Args:
        found, reference: logits [N, classes] of a model and of FP32.
        labels: [N]; None where there are none.
    """
    noise, signal = np.square(found - reference).sum(), np.square(reference).sum()
    same = found.argmax(1) == reference.argmax(1)
    return {
        "top1": None if labels is None else round(100 * float((found.argmax(1) == labels).mean()), 3),
        "agreement": round(100 * float(same.mean()), 3),
        "sqnr_db": None if noise == 0 else round(10 * float(np.log10(signal / noise)), 2),
    }
