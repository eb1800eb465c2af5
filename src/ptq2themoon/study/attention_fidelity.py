"""How near each recipe's attention keeps to full precision's, over the images of its attention.csv."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ptq2themoon.evaluate.attention import AttentionSpec
from ptq2themoon.evaluate.attention_query import CLASS_TOKEN
from ptq2themoon.tables.markdown import table
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.study_parameters import NORMS

NEEDED = ("image", "query", "cosine", "kl")
NEAR = 0.99  # cosine similarity from which on an image's attention counts as kept
FIGURES = {
    "cosine_mean": "Cosine, mean",
    "cosine_std": "std",
    "cosine_p5": "5 %",
    "cosine_min": "min",
    "kl_mean": "KL (nats), mean",
    "kl_std": "std",
    "kl_p95": "95 %",
    "kl_max": "max",
    "near_share": f"Images of cosine ≥ {NEAR}",
}
COLUMNS = ["recipe", "bits", "images", "query", "block", *FIGURES]


def fidelity_table(tables: Mapping[str, pd.DataFrame], bits: str, spec: AttentionSpec) -> pd.DataFrame:
    """One row per recipe with `COLUMNS`; the deviations (std) are those of these very images."""
    rows = []
    for recipe, images in tables.items():
        if set(images["query"]) != {spec.query}:
            found = " and ".join(map(repr, images["query"].unique()))
            raise UserError(
                f"--table {recipe}: query {found}; fusion.json says {spec.query!r}, run evaluate again"
            )
        row = {
            "recipe": recipe, "bits": bits, "images": len(images), "query": spec.query, "block": spec.block
        }  # fmt: skip
        rows.append({**row, **_figures(images["cosine"], images["kl"])})
    return pd.DataFrame(rows, columns=COLUMNS)


def _figures(cosine: pd.Series, kl: pd.Series) -> dict[str, float]:
    return {
        "cosine_mean": cosine.mean(),
        "cosine_std": cosine.std(ddof=0),
        "cosine_p5": cosine.quantile(0.05),
        "cosine_min": cosine.min(),
        "kl_mean": kl.mean(),
        "kl_std": kl.std(ddof=0),
        "kl_p95": kl.quantile(0.95),
        "kl_max": kl.max(),
        "near_share": (cosine >= NEAR).mean(),
    }


def fidelity_markdown(found: pd.DataFrame, spec: AttentionSpec) -> str:
    """The table rounded for reading, below what was compared."""
    lines = []
    for row in found.to_dict("records"):
        *figures, share = (row[name] for name in FIGURES)
        line = [row["recipe"], row["bits"], row["images"], *(f"{value:.4f}" for value in figures)]
        lines.append([*line, f"{100 * share:.1f} %"])
    whose = "the class token" if spec.query == CLASS_TOKEN else "all tokens on average"
    said = [
        f"Attention of {whose} to the patches, block {spec.block}: {spec.note}.",
        "Of each image: cosine similarity (1 is equal) and KL(quantized || FP32) in nats (0 is equal), means",
        "over heads, and over groups of tokens that attend apart.",
    ]
    if NORMS in set(found["recipe"]):
        said.append(f"`{NORMS}` is what the study's own figures call vanilla.")
    header = ["Recipe", "Bits", "Images", *FIGURES.values()]
    return "\n".join(["# Attention against full precision", "", *said, "", *table(header, lines), ""])
