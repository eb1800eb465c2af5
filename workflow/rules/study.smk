from ptq2themoon.vocabulary.stages.study import (
    StudyAblation,
    StudyAuto,
    StudyBits,
    StudyFusion,
)
from ptq2themoon.vocabulary.stages.study_figures import (
    PlotStudyAblation,
    PlotStudyFusion,
    PlotStudyModels,
    PlotStudyPublished,
    PlotStudyRanking,
)
from ptq2themoon.vocabulary.stages.study_tables import StudyModels, StudyTable


rule study_bits:
    input:
        **inputs(StudyBits),
    output:
        **outputs(StudyBits),
    log:
        log_of(StudyBits),
    benchmark:
        times_of(StudyBits)
    priority: 50  # much waits for it
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=120,
    params:
        **settings(StudyBits),
    message:
        "{wildcards.model}: the first bits at which a recipe loses more than {params.loss} points"
    shell:
        command(StudyBits)


rule study_auto:
    input:
        **inputs(StudyAuto),
    output:
        **outputs(
            StudyAuto, out_ranking=studied("ranking_table", "2 Which operators", "Ranking, all numbers")
        ),
    log:
        log_of(StudyAuto),
    benchmark:
        times_of(StudyAuto)
    priority: 50  # much waits for it
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=240,
    params:
        **settings(StudyAuto),
    message:
        "{wildcards.model}: rank what per-channel scales gain, and find the recipe that needs fewest"
    shell:
        command(StudyAuto)


rule study_ablation:
    input:
        **inputs(StudyAblation, recipes=tuple(PARAMS.study.recipes)),
    output:
        **outputs(StudyAblation),
    log:
        log_of(StudyAblation),
    benchmark:
        times_of(StudyAblation)
    wildcard_constraints:
        width="|".join(study_layout.PARTS),
        part="|".join(study_layout.PARTS["narrow"]),
    conda:
        ENVIRONMENT
    threads: ABLATION_SHARE
    resources:
        runtime=480,
    params:
        **settings(StudyAblation),
    message:
        "{wildcards.model}: ablation, {wildcards.width} bits, {wildcards.part}, seed {wildcards.seed}"
    shell:
        command(StudyAblation)


rule study_table:
    input:
        **inputs(StudyTable),
    output:
        **outputs(StudyTable, out=ablation("ablation_table", "Table")),
    log:
        log_of(StudyTable),
    benchmark:
        times_of(StudyTable)
    wildcard_constraints:
        variant="|".join(study_layout.TABLES_OF),
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(StudyTable),
    message:
        "{wildcards.model}: table of the ablation, {wildcards.variant}"
    shell:
        command(StudyTable)


rule plot_study_ablation:
    input:
        **inputs(PlotStudyAblation),
    output:
        **outputs(PlotStudyAblation, out_png=ablation("ablation", "Bars")),
    log:
        log_of(PlotStudyAblation),
    benchmark:
        times_of(PlotStudyAblation)
    wildcard_constraints:
        variant="|".join(study_layout.TABLES_OF),
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyAblation),
    message:
        "{wildcards.model}: plot the ablation, {wildcards.variant}"
    shell:
        command(PlotStudyAblation)


rule plot_study_ranking:
    input:
        **inputs(PlotStudyRanking),
    output:
        **outputs(PlotStudyRanking, out_png=studied("ranking", "2 Which operators", "Ranking and search")),
    log:
        log_of(PlotStudyRanking),
    benchmark:
        times_of(PlotStudyRanking)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyRanking),
    message:
        "{wildcards.model}: plot what per-channel scales gain"
    shell:
        command(PlotStudyRanking)


rule plot_study_published:
    input:
        **inputs(PlotStudyPublished),
    output:
        **outputs(
            PlotStudyPublished,
            out_errors=of_models("errors_published", "Errors by block, as the study printed them"),
            out_fusion=of_models("fusion_published", "Times, as the study printed them"),
        ),
    log:
        log_of(PlotStudyPublished),
    benchmark:
        times_of(PlotStudyPublished)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyPublished),
    message:
        "Draw what the study printed"
    shell:
        command(PlotStudyPublished)


rule study_fusion:
    input:
        **inputs(StudyFusion),
    output:
        **outputs(StudyFusion, out=studied("fusion_table", "3 Fusion", "The numbers")),
    log:
        log_of(StudyFusion),
    benchmark:
        times_of(StudyFusion)
    priority: 100  # before others occupy the cores, all of which it needs
    conda:
        ENVIRONMENT
    threads: ALL_CORES
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **settings(StudyFusion),
    message:
        "{wildcards.model}: time an image with and without fusion"
    shell:
        command(StudyFusion)


rule plot_study_fusion:
    input:
        **inputs(PlotStudyFusion),
    output:
        **outputs(PlotStudyFusion, out_png=studied("fusion", "3 Fusion", "Time and operators")),
    log:
        log_of(PlotStudyFusion),
    benchmark:
        times_of(PlotStudyFusion)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyFusion),
    message:
        "{wildcards.model}: plot what fusion saves"
    shell:
        command(PlotStudyFusion)


rule study_models:
    input:
        **inputs(StudyModels),
    output:
        **outputs(StudyModels, out=of_models("models_table", "Table")),
    log:
        log_of(StudyModels),
    benchmark:
        times_of(StudyModels)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(StudyModels),
    message:
        "Table of all models"
    shell:
        command(StudyModels)


rule plot_study_models:
    input:
        **inputs(PlotStudyModels),
    output:
        **outputs(PlotStudyModels, out_png=of_models("models", "Bars")),
    log:
        log_of(PlotStudyModels),
    benchmark:
        times_of(PlotStudyModels)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyModels),
    message:
        "Plot all models"
    shell:
        command(PlotStudyModels)


rule study:
    input:
        list(map(str, study_layout.study_files(PARAMS.models))),
