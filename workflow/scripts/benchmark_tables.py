"""Stage benchmark_tables: the tables of all models in one each, and a page of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ptq2themoon.benchmark.speed_tables import document
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import read_csv, write_csv


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", type=Path, nargs="+", required=True, help="machine.json of each model")
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="tables of each model")
    parser.add_argument("--out-md", type=Path, required=True)
    parser.add_argument(
        "--out-tables", type=Path, nargs="+", required=True, help="by the names of the tables"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with Stage(
        "benchmark_tables",
        inputs=[*args.machine, *args.table],
        outputs=[args.out_md, *args.out_tables],
        parameters={},
    ) as stage:
        machines = [json.loads(path.read_text(encoding="utf-8")) for path in args.machine]
        tables = {}
        for out in args.out_tables:
            rows = [row for path in args.table if path.name == out.name for row in read_csv(path)]
            tables[out.stem] = rows
            write_csv(stage.temporary(out), list(rows[0]), rows)
        stage.temporary(args.out_md).write_text(document(machines, tables), encoding="utf-8")


if __name__ == "__main__":
    run(main)
