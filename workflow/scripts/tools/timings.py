"""Sum up the benchmarks of a run from scratch: seconds and memory of each rule, and the time on the clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError


def jobs(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rule, seconds, largest memory in MB, begin and end (seconds since the epoch) of each job."""
    for path in files:
        row = pd.read_csv(path, sep="\t").iloc[-1]
        end = path.stat().st_mtime
        yield {
            "rule": path.stem,
            "seconds": row["s"],
            "mb": row["max_rss"],
            "begin": end - row["s"],
            "end": end,
        }


def timings(benchmarks: Path = Path("benchmarks"), out: Path = Path("results/timings.csv")) -> None:
    """Sum up the benchmarks of a run from scratch.

    Args:
        benchmarks: folder that Snakemake wrote.
        out: CSV, one row per rule.
    """
    files = sorted(benchmarks.rglob("*.tsv"))
    if not files:
        raise UserError(f"{benchmarks}: holds no benchmarks; run the workflow first")
    with Stage("timings", inputs=files, outputs=[out], parameters={}) as stage:
        table = pd.DataFrame(jobs(files))
        groups = table.sort_values("begin").groupby("rule", sort=False)
        rows = groups.agg(jobs=("rule", "size"), seconds=("seconds", "sum"), max_memory_mb=("mb", "max"))
        clock = table["end"].max() - table["begin"].min()
        rows.loc["from first to last"] = [len(table), clock, table["mb"].max()]
        rows.astype({"jobs": int}).round(1).to_csv(stage.temporary(out))
    print(rows.round(1).to_string())


if __name__ == "__main__":
    run(lambda: tyro.cli(timings))
