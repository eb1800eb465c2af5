"""Stage study_models: every model's full precision and compared quantizers in one table."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from ptq2themoon.stage import Stage, run
from ptq2themoon.study.ablation import KEYS, METRICS
from ptq2themoon.study.model_table import model_rows, models_markdown
from ptq2themoon.tables.csv_frames import read_table
from ptq2themoon.vocabulary.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--plain", type=Path, nargs="+", required=True, help="ablation_input.csv of each")
    parser.add_argument("--once", type=Path, nargs="+", required=True, help="ablation_once.csv of each")
    parser.add_argument("--published", type=Path, required=True, help="resources/study/models.csv")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--out-md", type=Path, required=True)
    args = parser.parse_args()
    if not len(args.models) == len(args.plain) == len(args.once):
        raise UserError("--models, --plain and --once: give one of each for every model")
    return args


def main() -> None:
    args = parse_args()
    with Stage(
        "study_models",
        inputs=[*args.plain, *args.once, args.published],
        outputs=[args.out, args.out_md],
        parameters={"models": args.models},
    ) as stage:
        rows = []
        for model, *paths in zip(args.models, args.plain, args.once, strict=True):
            rows += model_rows(model, *(read_table(path, [*KEYS, *METRICS]) for path in paths))
        found = pd.DataFrame(rows)
        found.to_csv(stage.temporary(args.out), index=False, float_format="%.8g")
        published = read_table(args.published, ["model", "top1_full_precision", "top1_quantized_w8a8"])
        stage.temporary(args.out_md).write_text(models_markdown(found, published), encoding="utf-8")


if __name__ == "__main__":
    run(main)
