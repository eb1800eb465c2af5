from ptq2themoon.vocabulary.stages.evaluate import AttentionMaps, Evaluate, OperatorErrors, Reference


rule reference:
    input:
        **inputs(Reference),
    output:
        **outputs(Reference),
    log:
        log_of(Reference),
    benchmark:
        times_of(Reference)
    priority: 50  # much waits for it
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=60,
    params:
        **call(Reference),
    message:
        "{wildcards.model}: floating point on all evaluation images"
    shell:
        RUN


rule evaluate_quantized:
    input:
        **inputs(Evaluate),
    output:
        **outputs(Evaluate, out_attention=table("attention", "attention fidelity")),
    log:
        log_of(Evaluate),
    benchmark:
        times_of(Evaluate)
    priority: 20  # the check in the runtime waits for it
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=120,
    params:
        **call(Evaluate),
    message:
        "{wildcards.model}, {wildcards.recipe}: evaluate {wildcards.key}"
    shell:
        RUN


rule operator_errors:
    input:
        **inputs(OperatorErrors),
    output:
        **outputs(OperatorErrors, out=table("operators", "operator errors")),
    log:
        log_of(OperatorErrors),
    benchmark:
        times_of(OperatorErrors)
    conda:
        ENVIRONMENT
    threads: SHARE
    resources:
        runtime=120,
    params:
        **call(OperatorErrors),
    message:
        "{wildcards.model}, {wildcards.recipe}: error of every operator, three ways"
    shell:
        RUN


rule attention_maps:
    input:
        **inputs(AttentionMaps),
    output:
        **outputs(AttentionMaps),
    log:
        log_of(AttentionMaps),
    benchmark:
        times_of(AttentionMaps)
    conda:
        ENVIRONMENT
    params:
        **call(AttentionMaps),
    message:
        "{wildcards.model}, {wildcards.variant}: attention maps"
    shell:
        RUN
