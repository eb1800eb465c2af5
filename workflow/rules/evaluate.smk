from ptq2themoon.vocabulary.stages.evaluate import (
    AttentionMaps,
    Evaluate,
    EvaluatePart,
    OperatorErrors,
    Reference,
    ReferencePart,
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
    threads: gatherer
    resources:
        **asks(Reference),
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
    threads: gatherer
    resources:
        **asks(Evaluate),
    params:
        **call(Evaluate),
    message:
        "{wildcards.model}, {wildcards.recipe}: evaluate {wildcards.key}"
    shell:
        RUN


rule reference_part:
    input:
        **inputs(ReferencePart),
    output:
        **part(ReferencePart),
    log:
        log_of(ReferencePart),
    benchmark:
        times_of(ReferencePart)
    priority: 50
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(ReferencePart),
    params:
        **call(ReferencePart),
    message:
        "{wildcards.model}: floating point on shard {wildcards.scatteritem}"
    shell:
        RUN


rule evaluate_part:
    input:
        **inputs(EvaluatePart),
    output:
        **part(EvaluatePart),
    log:
        log_of(EvaluatePart),
    benchmark:
        times_of(EvaluatePart)
    priority: 20
    conda:
        ENVIRONMENT
    threads: share
    resources:
        **asks(EvaluatePart),
    params:
        **call(EvaluatePart),
    message:
        "{wildcards.model}, {wildcards.recipe}: run {wildcards.key} on shard {wildcards.scatteritem}"
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
    threads: share
    resources:
        **asks(OperatorErrors),
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
    resources:
        **asks(AttentionMaps),
    params:
        **call(AttentionMaps),
    message:
        "{wildcards.model}, {wildcards.variant}: attention maps"
    shell:
        RUN
