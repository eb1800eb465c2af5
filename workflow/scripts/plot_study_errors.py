"""Draw the errors of the layers' inputs: by block, averaged, and as histograms over channels."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.plots.input_errors import (
    AVERAGE_COLUMNS,
    ERROR_COLUMNS,
    HISTOGRAM_COLUMNS,
    error_histograms,
    errors_average,
    errors_by_block,
)
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.names import QUANTIZERS
from ptq2themoon.tables.csv_frames import read_table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", type=Path, required=True, help="errors.csv")
    parser.add_argument("--average", type=Path, required=True, help="errors_average.csv")
    parser.add_argument("--histograms", type=Path, required=True, help="error_histograms.csv")
    parser.add_argument("--dpi", type=int, default=150)
    two, three = ("PNG", "SVG"), ("CSV", "PNG", "SVG")
    parser.add_argument("--out", type=Path, nargs=2, required=True, metavar=two, help="by block")
    parser.add_argument("--out-average", type=Path, nargs=2, required=True, metavar=two)
    for quantizer in QUANTIZERS:
        flag = f"--out-{quantizer.replace(' ', '-')}"
        parser.add_argument(flag, type=Path, nargs=3, required=True, metavar=three, help="histograms")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    of_quantizer = dict(zip(QUANTIZERS, (args.out_per_tensor, args.out_per_channel), strict=True))
    with Stage(
        "plot_study_errors",
        inputs=[args.errors, args.average, args.histograms],
        outputs=[*args.out, *args.out_average, *args.out_per_tensor, *args.out_per_channel],
        parameters={"dpi": args.dpi},
    ) as stage:
        histograms = read_table(args.histograms, HISTOGRAM_COLUMNS)
        save(errors_by_block(read_table(args.errors, ERROR_COLUMNS)), stage, *args.out, args.dpi)
        average = errors_average(read_table(args.average, AVERAGE_COLUMNS))
        save(average, stage, *args.out_average, args.dpi)
        for quantizer, (table, png, svg) in of_quantizer.items():
            rows = histograms[histograms["quantizer"] == quantizer]
            rows.to_csv(stage.temporary(table), index=False, float_format="%.6g")
            save(error_histograms(histograms, quantizer), stage, png, svg, args.dpi)


if __name__ == "__main__":
    run(main)
