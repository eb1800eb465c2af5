"""Stage study_table: the ablation's runs as means over seeds, CSV and Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.ablation import RUN, in_order, means, with_references
from ptq2themoon.study.ablation_tables import ablation_markdown
from ptq2themoon.study.names import VARIANTS
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.records import read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the table or figure calls the model")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--recipes", nargs="+", required=True, help="the rows, in order")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="of study_ablation, widest bits first"
    )
    parser.add_argument(
        "--plain", type=Path, nargs="*", default=[], help="the same for recipes that the variant leaves alone"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="fp32.json")
    parser.add_argument("--published", type=Path, required=True, help="resources/study/ablation.csv")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--out-md", type=Path, required=True)
    return parser.parse_args()


def read_runs(paths: list[Path]) -> pd.DataFrame:
    """All rows; each recipe must be there once for its bits and seed."""
    runs = pd.concat([read_table(path, RUN) for path in paths], ignore_index=True)
    double = runs[runs.duplicated(["recipe", "bits", "seed"])]
    if not double.empty:
        row = double.iloc[0]
        raise UserError(f"--runs: {row.recipe}, {row.bits}, seed {row.seed}: given twice")
    return runs


def main() -> None:
    args = parse_args()
    with Stage(
        "study_table",
        inputs=[*args.runs, *args.plain, args.metrics, args.published],
        outputs=[args.out, args.out_md],
        parameters={"model": args.name, "variant": args.variant, "recipes": args.recipes},
    ) as stage:
        runs = read_runs(args.runs)
        if args.plain:
            plain = read_runs(args.plain)
            runs = pd.concat([runs, plain[~plain["recipe"].isin(runs["recipe"])]], ignore_index=True)
        table = with_references(
            in_order(means(runs.assign(variant=args.variant)), args.recipes),
            read(args.metrics, Metrics),
            read_table(args.published, ["recipe", "top1"]),
        )
        table.to_csv(stage.temporary(args.out), index=False, float_format="%.8g")
        text = ablation_markdown(table, args.name, args.variant)
        stage.temporary(args.out_md).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
