"""The ablation: one row per recipe, bits, variant and seed; their means; and the bits that hurt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.study.names import MEASURES
from ptq2themoon.vocabulary.layout import FP32

# What a row is of, and what is measured of it.
KEYS = ("recipe", "bits", "variant")
METRICS = (
    "top1", "top5", "loss", "agreement",
    "logits_sqnr_db", "output_cosine", "attention_cosine", "attention_kl",
)  # fmt: skip
RUN = (*KEYS, "calibration_images", "seed", "images", *METRICS)


def points(metrics: Metrics) -> tuple[str, float]:
    """(measure, value in percent): top-1; without labels agreement with FP32; of features 100 * cosine."""
    for name, (factor, _) in MEASURES.items():
        value = getattr(metrics, name)
        if value is not None:
            return name, factor * float(value)
    raise ValueError("metrics without any measure")


def lost(quantized: Metrics, floating: Metrics) -> tuple[str, float]:
    """(measure, percentage points below floating point)."""
    name, value = points(quantized)
    full = floating.top1
    return name, (float(full) if name == "top1" and full is not None else 100.0) - value


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (of the sample, over seeds) of each metric, a row for each of `KEYS`.

    What a model has no figure for stays empty; with one seed the deviation does.
    """
    groups = runs.groupby(list(KEYS), sort=False, dropna=False)
    columns: dict[str, Any] = {
        "calibration_images": groups["calibration_images"].first(),
        "seeds": groups["seed"].nunique(),
        "images": groups["images"].first(),
    }
    for name in METRICS:
        columns[name], columns[f"{name}_std"] = groups[name].mean(), groups[name].std()
    return pd.DataFrame(columns).reset_index()


def with_references(table: pd.DataFrame, floating: Metrics, published: pd.DataFrame) -> pd.DataFrame:
    """A row of full precision below the rows of each bits, and beside each row the study's own top-1.

    Args:
        table: means of one variant.
        floating: fp32.json.
        published: resources/study/ablation.csv.
    """
    parts = []
    for bits, rows in table.groupby("bits", sort=False):
        full = {name: getattr(floating, name) for name in METRICS}
        facts = {
            "recipe": FP32,
            "bits": bits,
            "variant": rows["variant"].iloc[0],
            "images": floating.images,
        }
        parts += [rows, pd.DataFrame([{**facts, **full, "output_cosine": 1.0, "attention_cosine": 1.0}])]
    found = pd.concat(parts, ignore_index=True)[table.columns]
    known = published.set_index("recipe")["top1"]
    return found.assign(published_top1=found["recipe"].map(known))


def in_order(table: pd.DataFrame, recipes: Iterable[str]) -> pd.DataFrame:
    """Rows sorted by the place of their recipe, bits as they come."""
    place = {name: number for number, name in enumerate(recipes)}
    bits = {name: number for number, name in enumerate(dict.fromkeys(table["bits"]))}
    order = table.assign(_bits=table["bits"].map(bits), _place=table["recipe"].map(place))
    return order.sort_values(["_bits", "_place"], kind="stable")[table.columns].reset_index(drop=True)
