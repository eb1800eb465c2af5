"""What the stages of the ablation have in common: images, a reference, and a way to measure a recipe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ptq2themoon.data import CalibrationBatches, Source, calibration_batches
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.arguments import Evaluated, evaluated_images, open_model
from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.study.quantizing import Subject
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.recipes import Recipe


def add_bench(parser: argparse.ArgumentParser) -> None:
    """What recipes are calibrated and evaluated on."""
    parser.add_argument("--calibration", type=Path, required=True, help="calibration images")
    parser.add_argument("--calibration-batch-size", type=int, required=True)
    parser.add_argument("--reference", type=Path, required=True, help="reference.safetensors")
    parser.add_argument("--images", type=int, required=True, help="of the manifest, at most")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--block", type=int, default=-1, help="whose attention is compared")


@dataclass(frozen=True)
class Bench:
    """One model with the images that all its quantizers are measured on."""

    subject: Subject
    images: Evaluated
    calibration: CalibrationBatches
    reference: Reference
    spec: AttentionSpec

    @classmethod
    def open(cls, args: argparse.Namespace, source: Source, device: str) -> Bench:
        """What the arguments of `add_model`, `add_images` and `add_bench` name."""
        at_least(1, args.images, "--images")
        fused = open_model(args)
        images = evaluated_images(args, fused, source, args.batch_size, args.images)
        calibration = calibration_batches(
            args.calibration, images.batches.preprocessing, args.calibration_batch_size
        )
        spec = attention_spec(fused.report.attention, args.block)
        whole = Reference.load(args.reference, reference_of(fused.sha256, args.manifest, spec))
        reference = whole.at(images.places)
        return cls(Subject(fused, device), images, calibration, reference, spec)

    def metrics(self, recipe: Recipe, bits: str, seed: int = 0) -> Metrics:
        """Calibrate a recipe and evaluate it.

        Args:
            seed: of what methods draw.
        """
        model = self.subject.simulated(self.subject.quantized(recipe, bits, self.calibration, seed))
        images, references = self.images, self.reference.batches(self.images.batches.batch_size)
        kind = images.classifier, images.labelled
        return evaluate_quantized(model, images.batches, references, self.spec, *kind).metrics
