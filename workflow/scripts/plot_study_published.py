"""Draw what the study itself printed, errors by block and times of fusion, in the form of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.fusion import SECONDS, fusion_published
from ptq2themoon.plots.input_errors import PUBLISHED_COLUMNS, as_printed, errors_by_block
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_frames import read_table

ORIGIN = "As the study printed it: ViT-Base, W8A8, ImageNet; not measured here."


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", type=Path, required=True, help="resources/study/errors_by_block.csv")
    parser.add_argument("--models", type=Path, required=True, help="resources/study/models.csv")
    parser.add_argument("--dpi", type=int, default=150)
    for name in ("errors", "fusion"):
        parser.add_argument(f"--out-{name}", type=Path, nargs=3, required=True, metavar=("PNG", "SVG", "CSV"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    with Stage(
        "plot_study_published",
        inputs=[args.errors, args.models],
        outputs=[*args.out_errors, *args.out_fusion],
        parameters={"dpi": args.dpi},
    ) as stage:
        errors = as_printed(read_table(args.errors, PUBLISHED_COLUMNS))
        times = read_table(args.models, ["model", *SECONDS])[["model", *SECONDS]]
        figures = errors_by_block(errors, ORIGIN), fusion_published(times)
        for paths, table, figure in zip(
            (args.out_errors, args.out_fusion), (errors, times), figures, strict=True
        ):
            png, svg, csv = paths
            table.to_csv(stage.temporary(csv), index=False, float_format="%.8g")
            save(figure, stage, png, svg, args.dpi)


if __name__ == "__main__":
    run(main)
