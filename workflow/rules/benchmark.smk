rule benchmark_weights:
    input:
        code=code("benchmark_weights"),
    output:
        weights="results/models/random-{architecture}/weights.safetensors",
        images="results/models/random-{architecture}/images.safetensors",
    log:
        "logs/random-{architecture}/benchmark_weights.log",
    benchmark:
        "benchmarks/random-{architecture}/benchmark_weights.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        images=max(PARAMS.benchmark.images, PARAMS.calibration.check[0]),
    message:
        "{wildcards.architecture}: random weights"
    shell:
        "python workflow/scripts/benchmark_weights.py --architecture {wildcards.architecture} "
        "--images {params.images} --out {output.weights} --out-images {output.images} > {log} 2>&1"


rule benchmark_images:
    input:
        info="results/models/{model}/model.json",
        manifest="results/{model}/evaluation.csv",
        images=image_file("evaluation"),
        code=code("benchmark_images"),
    output:
        temp("results/benchmarks/{model}/evaluation.safetensors"),
    log:
        "logs/{model}/benchmark_images.log",
    benchmark:
        "benchmarks/{model}/benchmark_images.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        source=test_images,
        images=PARAMS.benchmark.evaluation_images,
    message:
        "{wildcards.model}: images for the benchmark"
    shell:
        "python workflow/scripts/benchmark_images.py {params.source:q} --info {input.info} "
        "--manifest {input.manifest} --images {params.images} --out {output} > {log} 2>&1"


rule benchmark_ppq:
    input:
        model="results/models/{model}/model.onnx",
        info="results/models/{model}/model.json",
        images=benchmark_calibration,
        code=code("benchmark_ppq"),
    output:
        temp("results/benchmarks/{model}/ppq.onnx"),
    log:
        "logs/{model}/benchmark_ppq.log",
    benchmark:
        "benchmarks/{model}/benchmark_ppq.tsv"
    conda:
        "../../environment.yml"
    threads: ALL_CORES
    resources:
        mem_mb=8000,
        runtime=60,
    message:
        "{wildcards.model}: PPQ's own INT8 model"
    shell:
        "python workflow/scripts/benchmark_ppq.py --model {input.model} --info {input.info} "
        "--images {input.images} --out {output} > {log} 2>&1"


rule benchmark_runtimes:
    input:
        python=peers_python,
        model="results/models/{model}/model.onnx",
        info="results/models/{model}/model.json",
        int8=lambda wildcards: list(deployed(wildcards).values()),
        calibration=benchmark_calibration,
        evaluation=evaluated,
        ppq="results/benchmarks/{model}/ppq.onnx",
        code=code("benchmark_runtimes"),
    output:
        machine="results/benchmarks/{model}/machine.json",
        latency="results/benchmarks/{model}/latency.csv",
        peers="results/benchmarks/{model}/peers.csv",
        operators="results/benchmarks/{model}/operators.csv",
    log:
        "logs/{model}/benchmark_runtimes.log",
    benchmark:
        "benchmarks/{model}/benchmark_runtimes.tsv"
    conda:
        "../../environment.yml"  # of the shell; the tools that are compared have .venv-peers
    threads: ALL_CORES
    resources:
        mem_mb=12000,
        runtime=120,
    params:
        ours=lambda wildcards: flags("--ours", *zip(*deployed(wildcards).items())),
        evaluation=lambda wildcards, input: option("--evaluation", input.evaluation),
        batches=PARAMS.benchmark.batches,
        rounds=PARAMS.benchmark.rounds,
        threads=PARAMS.benchmark.threads,
    message:
        "{wildcards.model}: our models and other tools', by turns"
    shell:
        "PYTHONPATH=src {input.python} workflow/scripts/benchmark_runtimes.py --name {wildcards.model} "
        "--model {input.model} --info {input.info} {params.ours:q} --ppq {input.ppq} "
        "--calibration {input.calibration} {params.evaluation:q} --batches {params.batches} "
        "--rounds {params.rounds} --threads {params.threads} --out-machine {output.machine} "
        "--out-latency {output.latency} --out-peers {output.peers} --out-operators {output.operators} "
        "> {log} 2>&1"


rule benchmark_simulation:
    input:
        graph="results/models/{model}/fused.onnx",
        fusion="results/models/{model}/fusion.json",
        info="results/models/{model}/model.json",
        qparams=lambda wildcards: [
            f"results/models/{wildcards.model}/{PARAMS.recipes[0]}/{benchmark_key(wildcards)}/qparams.{kind}"
            for kind in ("json", "safetensors")
        ],
        int8=lambda wildcards: deployed(wildcards)[f"{PARAMS.recipes[0]}/faithful"],
        images=benchmark_calibration,
        recipe=f"recipes/{PARAMS.recipes[0]}.yaml",
        code=code("benchmark_simulation"),
    output:
        "results/benchmarks/{model}/simulation.csv",
    log:
        "logs/{model}/benchmark_simulation.log",
    benchmark:
        "benchmarks/{model}/benchmark_simulation.tsv"
    conda:
        "../../environment.yml"
    threads: ALL_CORES
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        bits=PARAMS.bits[0],
        rounds=PARAMS.benchmark.simulation_rounds,
        threads=PARAMS.benchmark.threads,
    message:
        "{wildcards.model}: simulation and calibration, PPQ's and ours"
    shell:
        "python workflow/scripts/benchmark_simulation.py --name {wildcards.model} --model results/models/{wildcards.model} "
        "--qparams {input.qparams} --int8 {input.int8} "
        "--recipe {input.recipe} --bits {params.bits} --images {input.images} --rounds {params.rounds} "
        "--threads {params.threads} --out {output} > {log} 2>&1"


rule benchmark:
    input:
        machines=expand("results/benchmarks/{model}/machine.json", model=BENCHMARKED),
        tables=expand(
            "results/benchmarks/{model}/{table}.csv", model=BENCHMARKED, table=[*TABLES, "simulation"]
        ),
        code=code("benchmark_tables"),
    output:
        markdown="results/benchmarks/benchmarks.md",
        tables=expand("results/benchmarks/{table}.csv", table=[*TABLES, "simulation"]),
    log:
        "logs/benchmark_tables.log",
    benchmark:
        "benchmarks/benchmark_tables.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    message:
        "Tables of the benchmark"
    shell:
        "python workflow/scripts/benchmark_tables.py --machine {input.machines} --table {input.tables} "
        "--out-md {output.markdown} --out-tables {output.tables} > {log} 2>&1"
