"""Stage study_fidelity: how near each recipe's attention keeps to full precision's, over all images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.evaluate.attention import attention_spec
from ptq2themoon.graph.meaning.fusion_record import FusionReport
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.attention_fidelity import NEEDED, fidelity_markdown, fidelity_table
from ptq2themoon.tables.csv_frames import named_paths, read_table
from ptq2themoon.vocabulary.records import read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fusion", type=Path, required=True, help="fusion.json")
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="attention.csv of a recipe; repeat",
    )
    parser.add_argument("--bits", required=True, help="of all the tables, as in w8a8")
    parser.add_argument("--block", type=int, default=-1, help="whose attention the tables compare")
    parser.add_argument("--out-csv", type=Path, required=True)
    parser.add_argument("--out-md", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    paths = named_paths(args.table, "--table")
    with Stage(
        "study_fidelity",
        inputs=[args.fusion, *paths.values()],
        outputs=[args.out_csv, args.out_md],
        parameters={"recipes": list(paths), "bits": args.bits, "block": args.block},
    ) as stage:
        spec = attention_spec(read(args.fusion, FusionReport).attention, args.block)
        tables = {name: read_table(path, NEEDED) for name, path in paths.items()}
        found = fidelity_table(tables, args.bits, spec)
        found.to_csv(stage.temporary(args.out_csv), index=False, float_format="%.6g")
        stage.temporary(args.out_md).write_text(fidelity_markdown(found, spec), encoding="utf-8")


if __name__ == "__main__":
    run(main)
