from ptq2themoon.vocabulary.stages.calibrate import Calibrate


rule calibrate:
    input:
        **inputs(Calibrate),
    output:
        **outputs(Calibrate),
    log:
        log_of(Calibrate),
    benchmark:
        times_of(Calibrate)
    priority: 40  # all else waits for it
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(Calibrate),
    params:
        **call(Calibrate),
    message:
        "{wildcards.model}, {wildcards.recipe}: calibrate at {wildcards.bits} on {wildcards.images} images"
    shell:
        RUN
