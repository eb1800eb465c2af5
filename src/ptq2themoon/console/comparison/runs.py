"""The figures of runs that both sides have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq2themoon.console.comparison.findings import Figure
from ptq2themoon.console.comparison.noise import (
    OPERATOR_DECIBELS,
    Judgement,
    bounded_hits,
    by_tolerance,
    paired_hits,
)
from ptq2themoon.console.comparison.trees import Tree
from ptq2themoon.deploy.deploy_records import RuntimeReport
from ptq2themoon.evaluate.metrics import ranked
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.evaluate.outputs import Reference, load_simulated
from ptq2themoon.evaluate.paired import sign_test
from ptq2themoon.evaluate.row_record import Row
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.tables.leaderboard_rows import MEASURES, Hits, hits_of
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FP32, RESULTS
from ptq2themoon.vocabulary.records import read

HITS = ("top1", "top5", "agreement")
OTHERS = ("loss", "logits_sqnr_db", "output_cosine", "attention_cosine", "attention_kl")
SIMULATED = Path(layout.SIMULATED).name
PER_IMAGE = {"attention_cosine": "cosine", "attention_kl": "kl"}  # metric: column of attention.csv
# What tables and records of another form make of the code that reads them.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, OSError)
STUDY_KEYS = ["recipe", "bits", "variant", "calibration_images", "seed"]


def figures(first: Tree, second: Tree) -> Iterator[Figure]:
    """Of every run, deployed model, row of the ablation and row of the leaderboard.

    Raises:
        UserError: a file that cannot be read.
    """
    for name in sorted(first.files & second.files):
        if find := _finder(name.split("/")):
            try:
                yield from find(first, second, name)
            except UserError:
                raise
            except UNREADABLE as error:
                why = " ".join(str(error).split())
                raise UserError(
                    f"{name}: holds no such results on both sides ({type(error).__name__}: {why})"
                ) from error


def _finder(parts: Sequence[str]) -> Callable[[Tree, Tree, str], Iterator[Figure]] | None:
    """What reads the figures of a file, by the parts of its path."""
    if parts[-1] == "metrics.json":
        return _metrics
    if parts[-1] == "runtime.json":
        return _runtime
    if parts[-1] == "operators.csv" and parts[1] != "benchmarks":
        return _operators
    if parts[2:4] == ["study", "ablation"]:
        return _ablation
    return _row if parts[2:3] == ["leaderboard"] and parts[-1].endswith(".json") else None


def same_images(first: Tree, second: Tree, model: str) -> bool:
    """Whether a model was measured on the same list of images; where a side has no list, yes."""
    paths = [tree.root / layout.MANIFEST.format(model=model) for tree in (first, second)]
    return not all(path.is_file() for path in paths) or paths[0].read_bytes() == paths[1].read_bytes()


def where(name: str) -> str:
    """`results/demo/vanilla/w8a8-n256-s0/metrics.json` -> `demo/vanilla/w8a8-n256-s0`."""
    return "/".join(name.split("/")[1:-1])


def _metrics(first: Tree, second: Tree, name: str) -> Iterator[Figure]:
    a, b = (read(tree.root / name, Metrics) for tree in (first, second))
    paired = _hits(first, name), _hits(second, name)
    same = same_images(first, second, _model(name))
    for figure in _compared(where(name), a.model_dump(), b.model_dump(), same):
        hits, others = (side.get(figure.name) for side in paired)
        if same and hits is not None and others is not None and hits.shape == others.shape:
            figure = replace(figure, judgement=paired_hits(hits, others))
        elif same and figure.name in PER_IMAGE:
            figure = replace(figure, judgement=_attention(first, second, name, figure))
        yield figure


def _model(name: str) -> str:
    return name.split("/")[1]


def _compared(place: str, a: dict[str, Any], b: dict[str, Any], same: bool = True) -> Iterator[Figure]:
    """Figures by what one row says; `same`: on the same images."""
    images = int(a["images"])
    alike = same and images == int(b["images"])
    agreeing = [row.get("agreement") for row in (a, b)]
    for name in (*HITS, *OTHERS):
        values = a.get(name), b.get(name)
        if any(value is None or pd.isna(value) for value in values):
            continue
        one, other = float(a[name]), float(b[name])
        judgement = by_tolerance(name, one, other)
        if not alike:
            judgement = Judgement(False, None, "other images: not judged")
        elif name in HITS:
            judgement = bounded_hits(one, other, images, _most(name, agreeing, images))
        yield Figure(place, name, one, other, judgement)


def _most(name: str, agreeing: list[Any], images: int) -> float | None:
    """Images whose best class can differ between the sides: those on which one is not floating point's."""
    if name != "top1" or None in agreeing:
        return None
    return images * (200 - agreeing[0] - agreeing[1]) / 100


def _hits(tree: Tree, name: str) -> dict[str, Hits]:
    """Image by image whether top-1 and agreement hold; empty where the outputs are not there."""
    folder = tree.root / RESULTS / "models" / where(name)
    reference, simulated = tree.root / layout.REFERENCE.format(model=_model(name)), folder / SIMULATED
    manifest = tree.root / layout.MANIFEST.format(model=_model(name))
    plain = where(name).endswith(f"/{FP32}")
    if not (reference.is_file() and manifest.is_file() and (plain or simulated.is_file())):
        return {}
    floating = Reference.load(reference, {}).output[:].numpy()
    output = floating if plain else load_simulated(simulated, {})[:].numpy()
    labels = read_table(manifest, ["label"])["label"].to_numpy()
    if output.ndim != 2 or len(labels) != len(output):
        return {}
    best = ranked(output)[:, 0]
    found = {"agreement": (best == ranked(floating)[:, 0])[None]}
    return found if (labels < 0).any() else {**found, "top1": (best == labels)[None]}


def _attention(first: Tree, second: Tree, name: str, figure: Figure) -> Judgement:
    """By the sign test over images besides the tolerance, where both sides have a table of images."""
    paths = [(tree.root / name).with_name("attention.csv") for tree in (first, second)]
    if not all(path.is_file() for path in paths):
        return figure.judgement
    column = PER_IMAGE[figure.name]
    a, b = (read_table(path, [column])[column].to_numpy() for path in paths)
    if len(a) != len(b):
        return figure.judgement
    p = sign_test(np.sign(b - a).astype(np.int64))
    return Judgement(figure.judgement.large, p, f"{figure.judgement.how}; paired, p = {p:.2g}")


def _runtime(first: Tree, second: Tree, name: str) -> Iterator[Figure]:
    a, b = (read(tree.root / name, RuntimeReport) for tree in (first, second))
    same = same_images(first, second, _model(name))
    for mode in ("faithful", "fast"):
        modes = getattr(a, mode), getattr(b, mode)
        if None not in modes:
            one, other = (found.model_dump() for found in modes)
            yield from _compared(f"{where(name)}, {mode}", one, other, same)


def _operators(first: Tree, second: Tree, name: str) -> Iterator[Figure]:
    """The operator whose SQNR differs most, of each of the three ways to measure it."""
    keys = ["operator", "mode"]
    a, b = (
        read_table(tree.root / name, [*keys, "sqnr_db"]).set_index(keys)["sqnr_db"]
        for tree in (first, second)
    )
    change = (b - a.reindex(b.index)).dropna().abs()
    if change.empty and len(a) and len(b):
        raise ValueError("no operator in common")
    for mode, of_mode in change.groupby(level="mode", sort=False):
        operator = str(of_mode.idxmax()[0])
        one, other = float(a[operator, mode]), float(b[operator, mode])
        large, count = abs(other - one) > OPERATOR_DECIBELS, int((of_mode > OPERATOR_DECIBELS).sum())
        how = f"tolerance {OPERATOR_DECIBELS}, beyond it: {count} of {len(of_mode)}"
        yield Figure(where(name), f"SQNR of {operator}, {mode}", one, other, Judgement(large, None, how))


def _ablation(first: Tree, second: Tree, name: str) -> Iterator[Figure]:
    tables = [read_table(tree.root / name, [*STUDY_KEYS, "images", *HITS]) for tree in (first, second)]
    a, b = (
        {tuple(row[key] for key in STUDY_KEYS): row for row in table.to_dict("records")} for table in tables
    )
    for key in a.keys() & b.keys():
        place = f"{where(name)}, {' '.join(map(str, key[:3]))} n{key[3]} s{key[4]}"
        yield from _compared(place, a[key], b[key], same_images(first, second, _model(name)))


def _row(first: Tree, second: Tree, name: str) -> Iterator[Figure]:
    """A row of the leaderboard, all its draws together."""
    a, b = (read(tree.root / name, Row) for tree in (first, second))
    place = f"{where(name)} {name.split('/')[-1].removesuffix('.json')}"
    mean = partial(_mean, a=a, b=b)
    for metric, marks in MEASURES.items():
        hits, others = hits_of(a, marks), hits_of(b, marks)
        if hits is not None and others is not None and hits.shape == others.shape:
            yield Figure(place, metric, *mean(metric), paired_hits(hits, others))
    for metric in ("logits_sqnr_db", "attention_cosine"):
        one, other = mean(metric)
        if not np.isnan([one, other]).any():
            yield Figure(place, metric, one, other, by_tolerance(metric, one, other))


def _mean(metric: str, a: Row, b: Row) -> tuple[float, float]:
    """Over the draws; NaN where a draw has no such figure."""
    values = [[getattr(draw.metrics, metric) for draw in row.draws] for row in (a, b)]
    one, other = (float(np.mean([np.nan if v is None else v for v in side])) for side in values)
    return one, other
