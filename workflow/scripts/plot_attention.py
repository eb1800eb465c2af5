"""Draw attention, the class token's or all tokens': overview of several images, and every head of one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.evaluate.attention_maps import read_label_names, read_maps
from ptq2themoon.plots.arguments import add_maps, check_maps
from ptq2themoon.plots.attention_figures import attention_heads, attention_overview
from ptq2themoon.plots.style import save
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.attention_weights import heads_table, overview_table
from ptq2themoon.tables.csv_frames import named_paths


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_maps(parser, "attention_maps.safetensors")
    parser.add_argument("--image-index", type=int, default=0, help="the image whose heads are drawn")
    for figure in ("overview", "heads"):
        for kind in ("png", "svg"):
            parser.add_argument(f"--out-{figure}-{kind}", type=Path, required=True)
        parser.add_argument(f"--out-{figure}-csv", type=Path, help="the numbers drawn")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_maps(args)
    paths = named_paths(args.maps, "--maps")
    parameters = {
        "graphs": list(paths),
        "image_index": args.image_index,
        "rows": args.rows,
        "colormap": args.colormap,
        "dpi": args.dpi,
    }
    inputs = [*paths.values(), *([args.label_names] if args.label_names else [])]
    outputs = [args.out_overview_png, args.out_overview_svg, args.out_heads_png, args.out_heads_svg]
    outputs += [path for path in (args.out_overview_csv, args.out_heads_csv) if path]
    with Stage("plot_attention", inputs=inputs, outputs=outputs, parameters=parameters) as stage:
        maps = {name: read_maps(path) for name, path in paths.items()}
        names = read_label_names(args.label_names) if args.label_names else None
        overview = attention_overview(maps, names, args.rows, args.colormap)
        save(overview, stage, args.out_overview_png, args.out_overview_svg, args.dpi)
        heads = attention_heads(maps, args.image_index, names, args.colormap)
        save(heads, stage, args.out_heads_png, args.out_heads_svg, args.dpi)
        if path := args.out_overview_csv:
            overview_table(maps, args.rows).to_csv(stage.temporary(path), index=False, float_format="%.6g")
        if path := args.out_heads_csv:
            table = heads_table(maps, args.image_index)
            table.to_csv(stage.temporary(path), index=False, float_format="%.6g")


if __name__ == "__main__":
    run(main)
