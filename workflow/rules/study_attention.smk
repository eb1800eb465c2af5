from ptq2themoon.vocabulary.stages.study import StudyRollout


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
    resources:
        **asks(StudyRollout),
    params:
        **call(StudyRollout),
    message:
        "{wildcards.model}, {wildcards.variant}: attention rollout"
    shell:
        RUN
