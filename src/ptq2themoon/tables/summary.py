"""All metrics in one table: CSV for programs, Markdown and HTML for people; the first ones for DVC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ptq2themoon.deploy.deploy_records import RuntimeReport
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.tables.html_page import html_page, html_table
from ptq2themoon.tables.markdown import aligned_table
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32, Run
from ptq2themoon.vocabulary.records import read

# Each with its head in Markdown and the decimals that people read.
METRICS = {
    "top1": ("Top-1 (%)", 2),
    "top1_drop": ("Top-1 drop (points)", 2),
    "faithful_top1": ("Top-1 in ONNX Runtime, faithful (%)", 2),
    "fast_top1": ("Top-1 in ONNX Runtime, fast (%)", 2),
    "top5": ("Top-5 (%)", 2),
    "loss": ("Loss", 4),
    "agreement": ("Agreement with FP32 (%)", 2),
    "logits_sqnr_db": ("Output SQNR (dB)", 2),
    "output_cosine": ("Output cosine", 4),
    "attention_cosine": ("Attention cosine", 4),
    "attention_kl": ("Attention KL (nats)", 4),
}
# Columns of the deployed model: mode, and the name in its runtime.json.
RUNTIME = {
    "faithful_top1": ("faithful", "top1"),
    "fast_top1": ("fast", "top1"),
    "faithful_agreement": ("faithful", "agreement_simulation"),
    "fast_agreement": ("fast", "agreement_simulation"),
}
KEYS = {
    "model": "Model",
    "recipe": "Recipe",
    "protocol": "Protocol",
    "bits": "Bits",
    "calibration_images": "Calibration images",
    "seed": "Seed",
    "images": "Test images",
}
FIGURES = (*METRICS, *(name for name in RUNTIME if name not in METRICS))
COLUMNS = (*KEYS, *FIGURES)
TEXT = ("model", "recipe", "protocol", "bits")
NOTHING = "–"


class Entry(NamedTuple):
    """A result and its metrics.json; floating point has recipe and bits `fp32`, no images and no seed.

    `runtime`: the runtime.json of its deployed models.
    """

    model: str
    recipe: str
    bits: str
    calibration_images: int | None
    seed: int | None
    metrics: Path
    runtime: Path | None = None

    @property
    def key(self) -> tuple[str | int | None, ...]:
        """Model, recipe, bits, calibration images and seed."""
        return self[:5]


def summarize(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry, in their order, with `COLUMNS`; `top1_drop` is FP32's top-1 less its own.

    What a model has no figure for is NaN: top-1 of features, or of images without labels.

    Raises:
        UserError: a model without floating point, an entry given twice, or a file that holds no metrics.
    """
    keys = [entry.key for entry in entries]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise UserError(f"{' '.join(map(str, key))}: given twice")
    rows = [
        {**e._asdict(), **read(e.metrics, Metrics).model_dump(), **_read_runtime(e.runtime)} for e in entries
    ]
    full = {row["model"]: row["top1"] for row in rows if row["recipe"] == FP32}
    images = {row["model"]: row["images"] for row in rows if row["recipe"] == FP32}
    for row in rows:
        if row["model"] not in full:
            raise UserError(f"{row['metrics']}: model {row['model']!r} has no fp32 entry to compare with")
        if row["images"] != images[row["model"]]:
            raise UserError(
                f"{row['metrics']}: measured on {row['images']} images, floating point on "
                f"{images[row['model']]}: of another run; run the evaluate stage again"
            )
        if (full[row["model"]] is None) != (row["top1"] is None):
            raise UserError(f"{row['metrics']}: top1 only here or only in fp32; run the evaluate stage again")
        if row["top1"] is not None:
            row["top1_drop"] = round(full[row["model"]] - row["top1"], 8)  # no digits that only rounding made
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = dict.fromkeys(("calibration_images", "seed", "images"), "Int64")
    return table.astype({**whole, **dict.fromkeys(FIGURES, "float64")})


def _read_runtime(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    found = read(path, RuntimeReport)
    modes = {column: (getattr(found, mode), name) for column, (mode, name) in RUNTIME.items()}
    return {column: getattr(report, name) for column, (report, name) in modes.items() if report is not None}


def to_markdown(table: pd.DataFrame) -> str:
    """A table rounded for reading, figures to the right; without columns of modes that are not deployed."""
    return "\n".join(aligned_table(*_readable(table))) + "\n"


def to_html(table: pd.DataFrame, ships: Mapping[str, tuple[Path, int]]) -> str:
    """A page with the same table, and the models to ship with their sizes, for the report.

    Args:
        ships: INT8 model and its bytes by run.
    """
    sizes = [(run, str(path), f"{count / 1e6:.1f}") for run, (path, count) in ships.items()]
    models = html_table(("Run", "INT8 model to ship", "MB"), sizes, (True, True, False))
    parts = [("Every model and recipe", html_table(*_readable(table))), ("What to ship", models)]
    return html_page("Summary", parts if ships else parts[:1])


def _readable(table: pd.DataFrame) -> tuple[list[str], list[tuple[str, ...]], list[bool]]:
    """Heads, rows rounded for reading, and which columns are text."""
    heads = {**KEYS, **{name: head for name, (head, _) in METRICS.items()}}
    names = [name for name in heads if name not in RUNTIME or table[name].notna().any()]
    shown = zip(*([_shown(name, value) for value in table[name]] for name in names), strict=True)
    return [heads[name] for name in names], list(shown), [name in TEXT for name in names]


def _shown(name: str, value: Any) -> str:
    if pd.isna(value):
        return NOTHING
    if name in METRICS:
        text = f"{value:.{METRICS[name][1]}f}"
        return text.lstrip("-") if float(text) == 0 else text  # no -0.00
    return str(value)


def headline(table: pd.DataFrame, name: str) -> dict[str, dict[str, float]]:
    """One column: {model: {"fp32": value, "recipe/w8a8-n256-s0": value}}; unknown values are left out."""
    found: dict[str, dict[str, float]] = {model: {} for model in table["model"]}
    for row in table[table[name].notna()].to_dict("records"):
        run = Run(*(row[key] for key in ("model", "recipe", "bits", "calibration_images", "seed")))
        found[run.model][run.variant] = float(row[name])
    return found


def parse_runtime(entries: Sequence[Entry], values: Iterable[Sequence[str]]) -> list[Entry]:
    """The entries with their deployed models, each `MODEL RECIPE BITS N SEED RUNTIME.json`."""
    files = {tuple(key): Path(path) for *key, path in values}
    found = [entry._replace(runtime=files.pop(tuple(map(str, entry.key)), None)) for entry in entries]
    for key in files:
        raise UserError(f"--runtime {' '.join(key)}: no --entry of this model, recipe, bits, images and seed")
    return found


def parse_entry(values: Iterable[str]) -> Entry:
    """`MODEL RECIPE BITS N SEED METRICS.json` as the command line gives it; `-` for FP32's N and SEED."""
    model, recipe, bits, images, seed, metrics = values
    for text in (images, seed):
        if (text == "-") != (recipe == FP32):
            raise UserError(f"--entry {model} {recipe}: {text!r}; fp32, and only fp32, has '-' here")
        if text != "-" and not text.isdecimal():
            raise UserError(f"--entry {model} {recipe}: {text!r} is no number")
    if recipe == FP32:
        return Entry(model, recipe, bits, None, None, Path(metrics))
    return Entry(model, recipe, bits, int(images), int(seed), Path(metrics))
