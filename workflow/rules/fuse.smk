rule fuse:
    input:
        model="results/models/{model}/model.onnx",
        info="results/models/{model}/model.json",
        images=f"results/models/{{model}}/calibration-{CHECK}.safetensors",
        code=code("fuse"),
    output:
        graph="results/models/{model}/fused.onnx",
        report="results/models/{model}/fusion.json",
    log:
        "logs/{model}/fuse.log",
    benchmark:
        "benchmarks/{model}/fuse.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=15,
    message:
        "{wildcards.model}: fuse the graph and check its logits"
    shell:
        "python workflow/scripts/fuse.py --model {input.model} --info {input.info} --images {input.images} "
        "--out {output.graph} --out-report {output.report} > {log} 2>&1"
