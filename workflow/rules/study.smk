from ptq2themoon.vocabulary.stages.study import StudyAblation, StudyAuto, StudyBits, StudyFusion


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
    threads: share
    resources:
        **asks(StudyBits),
    params:
        **call(StudyBits),
    message:
        "{wildcards.model}: the first bits at which a recipe loses too much"
    shell:
        RUN


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
    threads: share
    resources:
        **asks(StudyAuto),
    params:
        **call(StudyAuto),
    message:
        "{wildcards.model}: rank what per-channel scales gain, and find the recipe that needs fewest"
    shell:
        RUN


rule study_ablation:
    input:
        **inputs(StudyAblation),
    output:
        **outputs(StudyAblation),
    log:
        log_of(StudyAblation),
    benchmark:
        times_of(StudyAblation)
    conda:
        ENVIRONMENT
    threads: ablation_share
    resources:
        **asks(StudyAblation),
    params:
        **call(StudyAblation),
    message:
        "{wildcards.model}: ablation, {wildcards.width} bits, {wildcards.part}, seed {wildcards.seed}"
    shell:
        RUN


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
    threads: all_cores
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **call(StudyFusion),
    message:
        "{wildcards.model}: time an image with and without fusion"
    shell:
        RUN


rule study:
    input:
        list(map(str, study_layout.study_files(PARAMS.models))),
