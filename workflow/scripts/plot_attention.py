"""Draw attention, the class token's or all tokens': overview of several images, and every head of one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptq2themoon.errors import UserError
from ptq2themoon.plots.attention import attention_heads, attention_overview
from ptq2themoon.plots.heatmap import check_colormap
from ptq2themoon.plots.inputs import named_paths, read_label_names, read_maps
from ptq2themoon.plots.style import check_dpi, save
from ptq2themoon.stage import Stage, run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--maps",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="attention_maps.safetensors of one graph; repeat, the reference (fp32) first",
    )
    parser.add_argument("--label-names", type=Path, help="JSON list of class names, or a model.json")
    parser.add_argument("--image-index", type=int, default=0, help="the image whose heads are drawn")
    parser.add_argument("--rows", type=int, default=4, help="images in the overview, at most")
    parser.add_argument("--colormap", default="viridis", help="any colormap of matplotlib")
    parser.add_argument("--dpi", type=int, default=150)
    for figure in ("overview", "heads"):
        for kind in ("png", "svg"):
            parser.add_argument(f"--out-{figure}-{kind}", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_dpi(args.dpi)
    check_colormap(args.colormap)
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: must be 1 or more")
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
    with Stage("plot_attention", inputs=inputs, outputs=outputs, parameters=parameters) as stage:
        maps = {name: read_maps(path) for name, path in paths.items()}
        names = read_label_names(args.label_names) if args.label_names else None
        overview = attention_overview(maps, names, args.rows, args.colormap)
        save(overview, stage, args.out_overview_png, args.out_overview_svg, args.dpi)
        heads = attention_heads(maps, args.image_index, names, args.colormap)
        save(heads, stage, args.out_heads_png, args.out_heads_svg, args.dpi)


if __name__ == "__main__":
    run(main)
