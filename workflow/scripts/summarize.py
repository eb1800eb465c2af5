"""Stage summarize: the metrics of every model in one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.summary import parse_entry, parse_runtime, summarize, to_markdown, to_nested
from ptq2themoon.vocabulary.records import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--entry",
        nargs=6,
        action="append",
        required=True,
        metavar=("MODEL", "RECIPE", "BITS", "N", "SEED", "METRICS"),
        help="a metrics.json and what it belongs to; fp32: MODEL fp32 fp32 - - METRICS; repeat",
    )
    parser.add_argument(
        "--runtime",
        nargs=6,
        action="append",
        default=[],
        metavar=("MODEL", "RECIPE", "BITS", "N", "SEED", "RUNTIME"),
        help="the runtime.json of an entry's deployed models; repeat",
    )
    parser.add_argument("--out-csv", type=Path, required=True)
    parser.add_argument("--out-md", type=Path, required=True)
    parser.add_argument("--out-json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    entries = parse_runtime([parse_entry(values) for values in args.entry], args.runtime)
    with Stage(
        "summarize",
        inputs=[path for e in entries for path in (e.metrics, e.runtime) if path],
        outputs=[args.out_csv, args.out_md, args.out_json],
        parameters={"entries": [list(e.key) for e in entries]},
    ) as stage:
        table = summarize(entries)
        table.to_csv(stage.temporary(args.out_csv), index=False, float_format="%.8g")
        stage.temporary(args.out_md).write_text(to_markdown(table), encoding="utf-8")
        write_json(stage.temporary(args.out_json), to_nested(table))


if __name__ == "__main__":
    run(main)
