from ptq2themoon.vocabulary.stages.evaluate import (
    AttentionMaps,
    Evaluate,
    OperatorErrors,
    Reference,
    Summarize,
)


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
        **settings(Reference),
    message:
        "{wildcards.model}: floating point on all evaluation images"
    shell:
        command(Reference)


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
        **settings(Evaluate),
    message:
        "{wildcards.model}, {wildcards.recipe}: evaluate {wildcards.key}"
    shell:
        command(Evaluate)


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
        **settings(OperatorErrors),
    message:
        "{wildcards.model}, {wildcards.recipe}: error of every operator, three ways"
    shell:
        command(OperatorErrors)


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
        **settings(AttentionMaps),
    message:
        "{wildcards.model}, {wildcards.variant}: attention maps"
    shell:
        command(AttentionMaps)


rule summarize:
    input:
        **inputs(Summarize, metrics=list(map(str, Summarize.of(PARAMS, None).inputs()))),
    output:
        **outputs(Summarize, out_csv=shown("summary", "Summary")),
    log:
        log_of(Summarize),
    benchmark:
        times_of(Summarize)
    conda:
        ENVIRONMENT
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        **settings(Summarize),
    message:
        "Summarize all models and recipes"
    shell:
        command(Summarize)
