"""Draw attention rollout of several images, and write the numbers drawn; or say why the model has none."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.evaluate.attention_maps import read_label_names, read_rollout
from ptq2themoon.plots.arguments import add_maps, check_maps
from ptq2themoon.plots.rollout import attention_rollout
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.attention_weights import rollout_table
from ptq2themoon.tables.csv_frames import named_paths


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_maps(parser, "rollout.safetensors")
    for kind in ("png", "svg", "csv"):
        parser.add_argument(f"--out-{kind}", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_maps(args)
    paths = named_paths(args.maps, "--maps")
    with Stage(
        "plot_rollout",
        inputs=[*paths.values(), *([args.label_names] if args.label_names else [])],
        outputs=[args.out_png, args.out_svg, args.out_csv],
        parameters={
            "graphs": list(paths),
            "rows": args.rows,
            "colormap": args.colormap,
            "dpi": args.dpi,
        },
    ) as stage:
        rollouts = {name: read_rollout(path) for name, path in paths.items()}
        names = read_label_names(args.label_names) if args.label_names else None
        table = rollout_table(rollouts, args.rows)
        table.to_csv(stage.temporary(args.out_csv), index=False, float_format="%.6g")
        figure = attention_rollout(rollouts, names, args.rows, args.colormap)
        save(figure, stage, args.out_png, args.out_svg, args.dpi)


if __name__ == "__main__":
    run(main)
