from ptq2themoon.vocabulary import data_free_layout
from ptq2themoon.vocabulary.stages.data_free import DataFreeRun


rule data_free_run:
    input:
        **inputs(DataFreeRun),
    output:
        **outputs(DataFreeRun),
    log:
        log_of(DataFreeRun),
    benchmark:
        times_of(DataFreeRun)
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(DataFreeRun),
    params:
        **call(DataFreeRun),
    message:
        "{wildcards.model}, {wildcards.recipe}: calibrate and measure with seed {wildcards.seed}"
    shell:
        RUN


rule data_free:
    input:
        data_free_layout.data_free_files(PARAMS),
