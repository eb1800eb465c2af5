"""The stages that make the study's tables, and what its figures share with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.job import Input, Job, Output, Setting, named
from ptq2themoon.vocabulary.stages.evaluate import Block
from ptq2themoon.vocabulary.stages.figures import names_of
from ptq2themoon.vocabulary.study_layout import (
    PUBLISHED,
    TABLES_OF,
    Variant,
    ablation_runs,
    first_run,
    of_all_models,
    studied,
    table_rows,
)
from ptq2themoon.vocabulary.study_parameters import CUSTOMIZED, NORMS

ModelName = Annotated[str, Setting("{model}", recorded=False)]
VariantName = Annotated[Variant, Setting("{reading}")]
OF_READING = "{model}/{reading}"
TABLE = studied("ablation_{reading}.csv")


def of_study(name: str) -> Input:
    """A file of a model's study."""
    return Input(studied(name))


def _runs(parts: tuple[str, ...], params: Any, wildcards: Any) -> list[str]:
    return [layout.fill(studied(name), wildcards) for name in ablation_runs(params.study, parts)]


class StudyTable(Job):
    """Put the runs of the ablation in one table."""

    stage: ClassVar[str] = "study_table"
    where: ClassVar[str] = OF_READING

    name: ModelName
    """What the table calls the model."""
    variant: VariantName
    """How recipes are read."""
    recipes: Annotated[tuple[str, ...], Setting(lambda params, w: table_rows(params.study, w.reading))]
    """The rows, in order."""
    runs: Annotated[tuple[Path, ...], Input(lambda params, w: _runs(TABLES_OF[w.reading], params, w))]
    """Runs of study_ablation, widest bits first."""
    plain: Annotated[
        tuple[Path, ...],
        Input(lambda params, w: _runs(("input",), params, w) if w.reading == "output" else []),
    ] = ()
    """Runs for recipes that this reading leaves alone."""
    metrics: Annotated[Path, of_study("fp32.json")]
    """fp32.json."""
    published: Annotated[Path, Input(f"{PUBLISHED}/ablation.csv")]
    """The study's published figures."""
    out: Annotated[Path, Output(TABLE)]
    """CSV."""
    out_md: Annotated[Path, Output(studied("ablation_{reading}.md"))]
    """Markdown."""

    def parameters(self) -> dict[str, Any]:
        return {"model": self.name, **super().parameters()}


def _of_models(reading: str) -> Input:
    pattern = TABLE.replace("{reading}", reading)
    return Input(lambda params, _: [layout.fill(pattern, layout.Run(name)) for name in params.models])


class StudyModels(Job):
    """Put all models in one table."""

    stage: ClassVar[str] = "study_models"
    where: ClassVar[str] = ""

    models: Annotated[tuple[str, ...], Setting(lambda params, _: list(params.models))]
    """Names of the models."""
    plain: Annotated[tuple[Path, ...], _of_models("input")]
    """ablation_input.csv of each."""
    once: Annotated[tuple[Path, ...], _of_models("once")]
    """ablation_once.csv of each."""
    published: Annotated[Path, Input(f"{PUBLISHED}/models.csv")]
    """The study's published figures."""
    out: Annotated[Path, Output(of_all_models("models.csv"))]
    """CSV."""
    out_md: Annotated[Path, Output(of_all_models("models.md"))]
    """Markdown."""


def looked_at(params: Any) -> list[str]:
    """Recipes whose attention the study looks at: LayerNorm per channel, and its own choice of operators."""
    return [recipe for recipe in (NORMS, CUSTOMIZED) if recipe in params.study.recipes]


def of_looked_at(pattern: str, *, floating: bool = True) -> Input:
    def files(params: Any, wildcards: Any) -> list[str]:
        names = looked_at(params)
        runs = [first_run(params, wildcards.model, name) for name in names]
        if floating:
            names, runs = [layout.FP32, *names], [layout.Run(wildcards.model), *runs]
        return named(names, [layout.fill(pattern, run) for run in runs])

    return Input(files)


class StudyFidelity(Job):
    """Measure how close the attention of each recipe is to floating point, over all images."""

    stage: ClassVar[str] = "study_fidelity"

    fusion: Annotated[Path, Input(layout.FUSION)]
    """fusion.json."""
    table: Annotated[tuple[str, ...], of_looked_at(layout.ATTENTION, floating=False)] = ()
    """NAME=attention.csv of each recipe."""
    bits: Annotated[str, Setting(lambda params, _: params.study.bits[0])]
    """Bits of all tables, such as w8a8."""
    block: Block = -1
    """The block whose attention the tables compare; a negative number counts from the end."""
    out_csv: Annotated[Path, Output(studied("attention_fidelity.csv"))]
    """CSV."""
    out_md: Annotated[Path, Output(studied("attention_fidelity.md"))]
    """Markdown."""

    def parameters(self) -> dict[str, Any]:
        return {"recipes": names_of(self.table), **super().parameters()}
