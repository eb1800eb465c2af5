"""Stage data_free_run: calibrate a recipe at some bits, measure each, keep the images it calibrated on."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from ptq2themoon.data import open_source
from ptq2themoon.device import resolve_device
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.methods import all_made
from ptq2themoon.pipeline import Prepared, calibrated, prepared
from ptq2themoon.quantize.image_loss import attended, mean_entropy
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.synthesis import pixel_range
from ptq2themoon.quantize.tools import Tools
from ptq2themoon.stage import Stage, run_job
from ptq2themoon.study.ablation_runs import Bench
from ptq2themoon.tables.source_means import COLUMNS, MEASURED
from ptq2themoon.vocabulary.bits import parse_bits
from ptq2themoon.vocabulary.model_info import PreprocessingInfo
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.stages.data_free import DataFreeRun


def main(job: DataFreeRun) -> None:
    device, source = resolve_device(job.device), open_source(job.kind, job.source)
    recipe = load_recipe(job.recipe, [parse_bits(bits) for bits in job.bits])
    with Stage.of(job, device=device) as stage:
        bench = Bench.open(job, source, device)
        fused, methods = bench.subject.fused, all_made(recipe.methods)
        measured = []
        for bits in job.bits:
            parsed = parse_bits(bits)
            tools = Tools(recipe, parsed, bench.calibration, job.seed, device, info=fused.info)
            ready = prepared(fused.graph, fused.operators, tools, methods)
            measured.append(metrics(bench, ready, device))
        images = torch.cat([batch.cpu() for batch in ready.tools.batches])
        entropy = patch_entropy(bench, images)
        fp32 = bench.reference.metrics(bench.images).top1
        rows = []
        for bits, each in zip(job.bits, measured, strict=True):
            figures = (getattr(each, name) for name in MEASURED)
            rows.append((recipe.name, bits, len(images), job.seed, each.images, entropy, fp32, *figures))
        table = pd.DataFrame(rows, columns=COLUMNS)
        table.to_csv(stage.temporary(job.out), index=False, float_format="%.8g")
        pixels = as_pixels(images, fused.info.preprocessing)
        save_file({"images": images.contiguous(), "pixels": pixels}, stage.temporary(job.out_images))


def metrics(bench: Bench, ready: Prepared, device: str) -> Metrics:
    """Of the rest of the calibration."""
    model = simulated(calibrated(ready), device)
    images, references = bench.images, bench.reference.batches(bench.images.batches.batch_size)
    kind = images.classifier, images.labelled
    return evaluate_quantized(model, images.batches, references, bench.spec, *kind).metrics


def patch_entropy(bench: Bench, images: Tensor) -> float | None:
    """Of patch similarity, summed over blocks; None of a model without attention between patches."""
    fused = bench.subject.fused
    outputs = attended(fused.graph, fused.operators)
    floating = SimulatedModel(fused.graph, bench.subject.device)
    parts: Iterable[Tensor] = floating.parts(images)
    return mean_entropy(floating, outputs, parts) if outputs else None


def as_pixels(images: Tensor, preprocessing: PreprocessingInfo) -> Tensor:
    """uint8 [N, C, H, W]; what lies outside black and white is clipped."""
    low, high = pixel_range(preprocessing)
    return ((images - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8).contiguous()


if __name__ == "__main__":
    run_job(main, DataFreeRun)
