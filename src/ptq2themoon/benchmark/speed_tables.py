"""The benchmark's tables for people: Markdown from the rows of its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptq2themoon.tables.markdown import table

Row = Mapping[str, str]
SHOWN_SHARES = 6  # operators a model; the CSV has all


def with_spread(row: Row, name: str = "ratio") -> str:
    """`2.31 (2.28–2.35)`: the median and the quartiles."""
    median, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def entry_key(row: Row) -> tuple[str, ...]:
    """Model, tool, variant, runtime and precision of a row: what tells entries apart."""
    return tuple(row[key] for key in ("model", "tool", "variant", "runtime", "precision"))


def comparison(latency: Sequence[Row], peers: Sequence[Row], model: str) -> list[str]:
    """One line for each model file and runtime: speed at each batch, size, accuracy."""
    batches = sorted({row["batch"] for row in latency}, key=int)
    speed = {(entry_key(row), row["batch"]): with_spread(row) for row in latency}
    header = ["Tool", "Model", "Runtime", "Rest in", *(f"Speed, batch {batch}" for batch in batches)]
    lines = []
    for row in peers:
        if row["model"] == model:
            line = [row[key] for key in ("tool", "variant", "runtime", "precision")]
            line += [speed.get((entry_key(row), batch), "does not run") for batch in batches]
            line += [f"{int(row['bytes']) / 1e6:.1f}", f"{float(row['size_ratio']):.2f}"]
            lines.append(line + [row[key] or "–" for key in ("top1", "agreement", "sqnr_db")])
    return table([*header, "MB", "of FP32", "Top-1, %", "Agreement, %", "SQNR, dB"], lines)


def kernels(latency: Sequence[Row], model: str) -> list[str]:
    """Which kernels compute the matrix products, at the smallest batch."""
    own = [row for row in latency if row["model"] == model]
    first = min((row["batch"] for row in own), key=int)
    keys = ("tool", "variant", "runtime", "precision", "kernels")
    lines = [[row[key] for key in keys] for row in own if row["batch"] == first]
    return table(["Tool", "Model", "Runtime", "Rest in", "Kernels"], lines)


def shares(operators: Sequence[Row], model: str) -> list[str]:
    """Where the time goes in ONNX Runtime, at the largest batch."""
    own = [row for row in operators if row["model"] == model]
    largest = max((row["batch"] for row in own), key=int)
    found: dict[str, list[str]] = {}
    for row in own:
        if row["batch"] == largest:
            shown = f"{row['operator']} {100 * float(row['share']):.0f} %"
            found.setdefault(row["variant"], []).append(shown)
    lines = [[name, ", ".join(values[:SHOWN_SHARES])] for name, values in found.items()]
    return table(["Model", f"Share of the time, batch {largest}"], lines)


def simulation(rows: Sequence[Row]) -> list[str]:
    """Table of the simulation's speed: one line per model, measure and contestant."""
    keys = ("model", "measure", "contestant", "images", "batch", "threads", "seconds")
    lines = [[*(row[key] for key in keys), with_spread(row), row["equal"] or "–"] for row in rows]
    header = ["Model", "Measure", "Contestant", "Images", "Batch", "Threads", "Seconds", "Speed", "Equal"]
    return table(header, lines)


def document(machines: Sequence[Mapping[str, Any]], tables: Mapping[str, Sequence[Row]]) -> str:
    """All of it.

    Args:
        tables: rows of `latency`, `peers`, `operators`, `simulation`.
    """
    lines = [
        "# Benchmarks",
        "",
        "Speed: times that of FP32 in ONNX Runtime, median (quartiles) of the rounds.",
    ]
    lines += ["[How it is measured](../../docs/benchmarks.md)."]
    for machine in machines:
        model = machine["model"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        facts = f"{machine['cpu']}, {' '.join(machine['flags'])}; {machine['threads']} threads; {versions}."
        lines += ["", f"## {model}", "", facts, ""]
        lines += [*comparison(tables["latency"], tables["peers"], model), ""]
        lines += [*kernels(tables["latency"], model), "", *shares(tables["operators"], model)]
    return "\n".join([*lines, "", "## Simulation and calibration", "", *simulation(tables["simulation"]), ""])
