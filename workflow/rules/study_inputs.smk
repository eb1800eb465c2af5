from ptq2themoon.vocabulary.stages.study import StudyActivations, StudyErrors


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
    threads: share
    resources:
        **asks(StudyActivations),
    params:
        **call(StudyActivations),
    message:
        "{wildcards.model}: ranges of the layers' inputs by channel"
    shell:
        RUN


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
    threads: share
    resources:
        **asks(StudyErrors),
    params:
        **call(StudyErrors),
    message:
        "{wildcards.model}: errors of the layers' inputs, class token and patch tokens apart"
    shell:
        RUN
