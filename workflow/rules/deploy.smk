from ptq2themoon.vocabulary.stages.deploy import Deploy, RuntimePart, VerifyRuntime


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
    resources:
        **asks(Deploy),
    params:
        **call(Deploy),
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 model, {wildcards.mode}"
    shell:
        RUN


rule runtime_part:
    input:
        **inputs(RuntimePart),
    output:
        **part(RuntimePart),
    log:
        log_of(RuntimePart),
    benchmark:
        times_of(RuntimePart)
    priority: 10
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(RuntimePart),
    params:
        **call(RuntimePart),
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 models on shard {wildcards.scatteritem}"
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
    threads: share
    resources:
        **asks(VerifyRuntime),
    params:
        **call(VerifyRuntime),
    message:
        "{wildcards.model}, {wildcards.recipe}: INT8 models in ONNX Runtime against the simulation"
    shell:
        RUN
