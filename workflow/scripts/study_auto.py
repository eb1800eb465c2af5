"""Stage study_auto: rank places by what a scale a channel gains, and write the recipe that needs fewest."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.arguments import add_model, open_model
from ptq2themoon.graph.fused_model import fused_files
from ptq2themoon.stage import Stage, run
from ptq2themoon.study.auto import Search, output_error, recipe_text
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.study.channel_ranking import Place, mixed, rank
from ptq2themoon.study.quantizing import Subject
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--base", type=Path, required=True, help="recipe with one scale a tensor")
    parser.add_argument("--channelwise", type=Path, required=True, help="recipe with all that may have more")
    parser.add_argument("--bits-from", type=Path, required=True, help="bits.json of study_bits")
    parser.add_argument("--calibration", type=Path, required=True, help="calibration images")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--images", type=int, required=True, help="of the calibration's, to rank on")
    parser.add_argument("--share", type=float, required=True, help="of the removable error, to remove")
    parser.add_argument("--seed", type=int, required=True, help="that drew the images; for the sidecar")
    parser.add_argument("--out", type=Path, required=True, help="auto.yaml")
    parser.add_argument("--out-ranking", type=Path, required=True, help="ranking.csv")
    parser.add_argument("--out-search", type=Path, required=True, help="search.csv")
    args = parser.parse_args()
    at_least(1, args.images, "--images")
    if not 0 < args.share <= 1:
        raise UserError(f"--share {args.share}: must lie above 0 and not above 1")
    return args


def main() -> None:
    args = parse_args()
    device, bits = resolve_device(args.device), read(args.bits_from, NarrowBits).narrow
    base, channelwise = load_recipe(args.base), load_recipe(args.channelwise)
    sources = dict.fromkeys([*base.sources, *channelwise.sources])
    with Stage(
        "study_auto",
        inputs=[*fused_files(args.model), args.bits_from, args.calibration, *sources],
        outputs=[args.out, args.out_ranking, args.out_search],
        parameters={
            "base": base.name,
            "channelwise": channelwise.name,
            "bits": bits,
            "batch_size": args.batch_size,
            "images": args.images,
            "share": args.share,
        },
        seed=args.seed,
        device=device,
    ) as stage:
        fused = open_model(args)
        calibration = calibration_batches(args.calibration, Preprocessing.of(fused.info), args.batch_size)
        few = torch.cat(list(islice(calibration, -(-args.images // args.batch_size))))[: args.images]
        batches = few.split(args.batch_size)
        subject = Subject(fused, device)
        # Quantized once, an activation is per channel where its reader is, whatever makes it.
        base, channelwise = (subject.read_as(recipe, "once") for recipe in (base, channelwise))
        per_tensor, per_channel = (
            subject.quantized(recipe, bits, calibration).quantized for recipe in (base, channelwise)
        )
        floating = subject.model([])
        references = [floating(images) for images in batches]
        ranking = rank(subject, per_tensor, per_channel, batches, references)
        places = [Place(r.role, None if pd.isna(r.block) else int(r.block)) for r in ranking.itertuples()]
        useful = places[: int((ranking["gain"] > 0).sum())]

        def error(chosen: list[Place]) -> float:
            model = subject.model(mixed(per_tensor, per_channel, chosen))
            return output_error(model, batches, references)

        search = Search(error, useful, args.share)
        chosen = search.run()
        ranking.insert(0, "rank", range(1, len(ranking) + 1))
        ranking["chosen"] = [place in chosen for place in places]
        facts = [
            f"Written by study_auto for {bits}: {len(chosen)} of {len(places)} places per channel remove",
            f"{100 * search.removed:.1f} % (asked: {100 * args.share:g} %) of the output error (1 - cosine)",
            f"that all {len(useful)} with a gain do, on {len(few)} calibration images of seed {args.seed}.",
            "Every activation is quantized once, by the operators that read it.",
        ]
        stage.temporary(args.out).write_text(recipe_text(base, chosen, ranking, facts), encoding="utf-8")
        load_recipe(stage.temporary(args.out))
        ranking.to_csv(stage.temporary(args.out_ranking), index=False, float_format="%.8g")
        steps = pd.DataFrame(search.steps)
        steps.to_csv(stage.temporary(args.out_search), index=False, float_format="%.8g")


if __name__ == "__main__":
    run(main)
