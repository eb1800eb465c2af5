from ptq2themoon.vocabulary.stages.deploy import Deploy, VerifyRuntime


rule deploy:
    input:
        **inputs(Deploy),
    output:
        **outputs(Deploy),
    log:
        log_of(Deploy),
    benchmark:
        times_of(Deploy)
    priority: 30  # the check in the runtime waits for it
    conda:
        ENVIRONMENT
    params:
        **call(Deploy),
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 model, {wildcards.mode}"
    shell:
        RUN


rule verify_runtime:
    input:
        **inputs(VerifyRuntime),
    output:
        **outputs(VerifyRuntime),
    log:
        log_of(VerifyRuntime),
    benchmark:
        times_of(VerifyRuntime)
    priority: 10
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=60,
    params:
        **call(VerifyRuntime),
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 models in ONNX Runtime against the simulation"
    shell:
        RUN
