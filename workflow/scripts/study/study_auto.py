"""Stage study_auto: rank sites by what per-channel scales gain, and write the recipe that needs fewest."""

from __future__ import annotations

from itertools import islice

import pandas as pd
import torch

from ptq2themoon.data import Preprocessing, calibration_batches
from ptq2themoon.device import resolve_device
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.selection.auto import Search, output_error, recipe_text
from ptq2themoon.selection.sites import Site, mixed, rank
from ptq2themoon.selection.subject import Subject
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.bits_record import NarrowBits
from ptq2themoon.vocabulary.errors import UserError, at_least
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.records import read
from ptq2themoon.vocabulary.stages.study import StudyAuto


def main(job: StudyAuto) -> None:
    at_least(1, job.images, "--images")
    if not 0 < job.share <= 1:
        raise UserError(f"--share {job.share}: must lie above 0 and not above 1")
    device, bits = resolve_device(job.device), read(job.bits_from, NarrowBits).narrow
    base, channelwise = load_recipe(job.base), load_recipe(job.channelwise)
    with Stage.of(job, device=device, extra={"bits": bits}) as stage:
        fused = FusedModel.open(job.model)
        at_once = fused.at_once(job.batch_size)
        calibration = calibration_batches(job.calibration, Preprocessing.of(fused.info), at_once)
        few = torch.cat(list(islice(calibration, -(-job.images // at_once))))[: job.images]
        batches = few.split(at_once)
        subject = Subject(fused, device)
        # Quantized once, an activation is per channel where its reader is, whatever makes it.
        base, channelwise = (subject.read_as(recipe, "once") for recipe in (base, channelwise))
        per_tensor, per_channel = (
            subject.quantized(recipe, bits, calibration).quantized for recipe in (base, channelwise)
        )
        floating = subject.model([])
        references = [floating(images) for images in batches]
        ranking = rank(subject, per_tensor, per_channel, batches, references)
        sites = [Site(r.role, None if pd.isna(r.block) else int(r.block)) for r in ranking.itertuples()]
        useful = sites[: int((ranking["gain"] > 0).sum())]

        def error(chosen: list[Site]) -> float:
            model = subject.model(mixed(per_tensor, per_channel, chosen))
            return output_error(model, batches, references)

        search = Search(error, useful, job.share)
        chosen = search.run()
        ranking.insert(0, "rank", range(1, len(ranking) + 1))
        ranking["chosen"] = [site in chosen for site in sites]
        facts = [
            f"Written by study_auto for {bits}: {len(chosen)} of {len(sites)} sites per channel remove",
            f"{100 * search.removed:.1f} % (asked: {100 * job.share:g} %) of the output error (1 - cosine)",
            f"that all {len(useful)} with a gain do, on {len(few)} calibration images of seed {job.seed}.",
            "Every activation is quantized once, by the operators that read it.",
        ]
        stage.temporary(job.out).write_text(recipe_text(base, chosen, ranking, facts), encoding="utf-8")
        load_recipe(stage.temporary(job.out))
        ranking.to_csv(stage.temporary(job.out_ranking), index=False, float_format="%.8g")
        steps = pd.DataFrame(search.steps)
        steps.to_csv(stage.temporary(job.out_search), index=False, float_format="%.8g")


if __name__ == "__main__":
    run_job(main, StudyAuto)
