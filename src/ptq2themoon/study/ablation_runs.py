"""What the stages of the ablation have in common: images, a reference, and a way to measure a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ptq2themoon.data import CalibrationBatches, Source, calibration_batches
from ptq2themoon.evaluate.accuracy import evaluate_quantized
from ptq2themoon.evaluate.attention import AttentionSpec, attention_spec
from ptq2themoon.evaluate.evaluation_images import Evaluated, evaluated_images
from ptq2themoon.evaluate.metrics_record import Metrics
from ptq2themoon.evaluate.outputs import Reference, reference_of
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.selection.subject import Subject
from ptq2themoon.vocabulary.errors import at_least
from ptq2themoon.vocabulary.recipes import Recipe
from ptq2themoon.vocabulary.stages.study import OnStudyImages


@dataclass(frozen=True)
class Bench:
    """One model with the images that all its quantizers are measured on."""

    subject: Subject
    images: Evaluated
    calibration: CalibrationBatches
    reference: Reference
    spec: AttentionSpec

    @classmethod
    def open(cls, job: OnStudyImages, source: Source, device: str) -> Bench:
        """What the job names."""
        at_least(1, job.images, "--images")
        fused = FusedModel.open(job.model)
        images = evaluated_images(job.manifest, fused.info, source, job.batch_size, job.images)
        at_once = fused.at_once(job.calibration_batch_size)
        calibration = calibration_batches(job.calibration, images.batches.preprocessing, at_once)
        spec = attention_spec(fused.report.attention, job.block)
        whole = Reference.load(job.reference, reference_of(fused.sha256, job.manifest, spec))
        reference = whole.at(images.indices)
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
