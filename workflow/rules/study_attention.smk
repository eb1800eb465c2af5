from ptq2themoon.vocabulary.stages.study import StudyRollout
from ptq2themoon.vocabulary.stages.study_figures import PlotRollout, PlotStudyAttention
from ptq2themoon.vocabulary.stages.study_tables import StudyFidelity


rule study_rollout:
    input:
        **inputs(StudyRollout),
    output:
        **outputs(StudyRollout),
    log:
        log_of(StudyRollout),
    benchmark:
        times_of(StudyRollout)
    conda:
        ENVIRONMENT
    params:
        **settings(StudyRollout),
    message:
        "{wildcards.model}, {wildcards.variant}: attention rollout"
    shell:
        command(StudyRollout)


rule plot_study_attention:
    input:
        **inputs(PlotStudyAttention),
    output:
        **outputs(
            PlotStudyAttention,
            out_overview_png=studied("attention_overview", "6 Attention", "head mean and overlay"),
            out_heads_png=studied("attention_heads", "6 Attention", "every head"),
        ),
    log:
        log_of(PlotStudyAttention),
    benchmark:
        times_of(PlotStudyAttention)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotStudyAttention),
    message:
        "{wildcards.model}: plot attention maps of the study"
    shell:
        command(PlotStudyAttention)


rule plot_study_rollout:
    input:
        **inputs(PlotRollout),
    output:
        **outputs(PlotRollout, out_png=studied("attention_rollout", "6 Attention", "rollout")),
    log:
        log_of(PlotRollout),
    benchmark:
        times_of(PlotRollout)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(PlotRollout),
    message:
        "{wildcards.model}: plot attention rollout"
    shell:
        command(PlotRollout)


rule study_fidelity:
    input:
        **inputs(StudyFidelity),
    output:
        **outputs(
            StudyFidelity, out_csv=studied("attention_fidelity", "6 Attention", "fidelity over all images")
        ),
    log:
        log_of(StudyFidelity),
    benchmark:
        times_of(StudyFidelity)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(StudyFidelity),
    message:
        "{wildcards.model}: fidelity of attention over all images"
    shell:
        command(StudyFidelity)
