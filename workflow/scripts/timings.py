"""Sum up the benchmarks of a run from scratch: seconds and memory of each rule, and the time on the clock."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", type=Path, default=Path("benchmarks"), help="as Snakemake wrote them")
    parser.add_argument("--out", type=Path, default=Path("results/timings.csv"))
    return parser.parse_args()


def jobs(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rule, seconds, largest memory in MB, begin and end (seconds since the epoch) of each job."""
    for path in files:
        row = pd.read_csv(path, sep="\t").iloc[-1]
        end = path.stat().st_mtime
        # evaluate.tsv, draw_calibration-n256-s0.tsv
        rule = path.stem.partition("-")[0]
        yield {"rule": rule, "seconds": row["s"], "mb": row["max_rss"], "begin": end - row["s"], "end": end}


def main() -> None:
    args = parse_args()
    files = sorted(args.benchmarks.rglob("*.tsv"))
    if not files:
        raise UserError(f"{args.benchmarks}: holds no benchmarks; run the workflow first")
    with Stage("timings", inputs=files, outputs=[args.out], parameters={}) as stage:
        table = pd.DataFrame(jobs(files))
        groups = table.sort_values("begin").groupby("rule", sort=False)
        rows = groups.agg(jobs=("rule", "size"), seconds=("seconds", "sum"), max_memory_mb=("mb", "max"))
        clock = table["end"].max() - table["begin"].min()
        rows.loc["from first to last"] = [len(table), clock, table["mb"].max()]
        rows.astype({"jobs": int}).round(1).to_csv(stage.temporary(args.out))
    print(rows.round(1).to_string())


if __name__ == "__main__":
    run(main)
