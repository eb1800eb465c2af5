"""Sources of calibration images side by side: means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ptq2themoon.vocabulary.errors import UserError

MEASURED = ("top1", "agreement", "logits_sqnr_db", "attention_cosine")
COLUMNS = ("recipe", "bits", "calibration_images", "seed", "images", "entropy", "fp32_top1", *MEASURED)
AVERAGED = ("entropy", *MEASURED)
TABLE = (
    "source", "recipe", "bits", "calibration_images", "seeds", "images", "fp32_top1",
    *(f"{name}{end}" for name in AVERAGED for end in ("", "_std")),
)  # fmt: skip


def data_free(runs: Sequence[pd.DataFrame], sources: Mapping[str, str]) -> pd.DataFrame:
    """One row for each source and bits with `TABLE`, in the order given.

    `entropy` is that of patch similarity of the calibration images in floating point, summed over blocks,
    in nats. Deviations are of the sample, over seeds; with one seed they are empty.

    Args:
        runs: with `COLUMNS`, one for each recipe and seed.
        sources: recipes, by the name of the source.

    Raises:
        UserError: a source whose recipe was not run, or runs on different numbers of images.
    """
    table, rows = pd.concat(runs, ignore_index=True), []
    if table["images"].nunique() > 1:
        raise UserError("--runs: measured on different numbers of images; run `snakemake data_free` again")
    for source, recipe in sources.items():
        own = table[table["recipe"] == recipe]
        if own.empty:
            raise UserError(f"--sources {source}={recipe}: none of --runs is of this recipe")
        for bits, group in own.groupby("bits", sort=False):
            first = group.iloc[0]
            row = {"source": source, "recipe": recipe, "bits": bits, "seeds": group["seed"].nunique()}
            row |= {name: first[name] for name in ("calibration_images", "images", "fp32_top1")}
            for name in AVERAGED:
                row |= {name: group[name].mean(), f"{name}_std": group[name].std()}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(TABLE))
