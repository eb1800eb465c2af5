from ptq2themoon.vocabulary import learning_curve_layout
from ptq2themoon.vocabulary.stages.learning_curve import LearningCurveRun


rule learning_curve_run:
    input:
        **inputs(LearningCurveRun),
    output:
        **outputs(LearningCurveRun),
    log:
        log_of(LearningCurveRun),
    benchmark:
        times_of(LearningCurveRun)
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(LearningCurveRun),
    params:
        **call(LearningCurveRun),
    message:
        "{wildcards.model}, {wildcards.recipe}: train for each number of iterations with seed {wildcards.seed}"
    shell:
        RUN


rule learning_curve:
    input:
        learning_curve_layout.learning_curve_files(PARAMS),
