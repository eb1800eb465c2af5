from ptq2themoon.vocabulary.stages.study import StudyActivations, StudyErrors
from ptq2themoon.vocabulary.stages.study_figures import PlotStudyActivations, PlotStudyErrors


rule study_activations:
    input:
        **inputs(StudyActivations),
    output:
        **outputs(
            StudyActivations,
            out_largest=studied(
                "activations_largest", "4 Activations", "channel of the largest range, by layer and block"
            ),
        ),
    log:
        log_of(StudyActivations),
    benchmark:
        times_of(StudyActivations)
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=30,
    params:
        **settings(StudyActivations),
    message:
        "{wildcards.model}: ranges of the layers' inputs by channel"
    shell:
        command(StudyActivations)


rule study_errors:
    input:
        **inputs(StudyErrors),
    output:
        **outputs(
            StudyErrors,
            out=studied("errors", "5 Errors", "by layer and block"),
            out_average=studied("errors_average", "5 Errors", "mean over blocks"),
        ),
    log:
        log_of(StudyErrors),
    benchmark:
        times_of(StudyErrors)
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=30,
    params:
        **settings(StudyErrors),
    message:
        "{wildcards.model}: errors of the layers' inputs, class token and patch tokens apart"
    shell:
        command(StudyErrors)


rule plot_study_activations:
    input:
        **inputs(PlotStudyActivations),
    output:
        **outputs(
            PlotStudyActivations,
            out_png=studied("activations", "4 Activations", "every block"),
            out_block_png=studied("activations_block", "4 Activations", f"block {PARAMS.study.block}"),
        ),
    log:
        log_of(PlotStudyActivations),
    benchmark:
        times_of(PlotStudyActivations)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyActivations),
    message:
        "{wildcards.model}: plot the ranges of the layers' inputs"
    shell:
        command(PlotStudyActivations)


rule plot_study_errors:
    input:
        **inputs(PlotStudyErrors),
    output:
        **outputs(
            PlotStudyErrors,
            out=studied("errors", "5 Errors", "by block"),
            out_average=studied("errors_average", "5 Errors", "mean over blocks"),
            out_per_tensor=studied(
                "error_histograms",
                "5b Error histograms",
                "channels by percentage error",
                quantizer="per tensor",
            ),
            out_per_channel=studied(
                "error_histograms",
                "5b Error histograms",
                "channels by percentage error",
                quantizer="per channel",
            ),
        ),
    log:
        log_of(PlotStudyErrors),
    benchmark:
        times_of(PlotStudyErrors)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyErrors),
    message:
        "{wildcards.model}: plot the errors of the layers' inputs"
    shell:
        command(PlotStudyErrors)
