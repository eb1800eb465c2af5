# What the rules of the benchmark have in common.
# Timed models are one after the other on a machine of their own: each job takes all cores.
ALL_CORES = workflow.cores or PARAMS.benchmark.threads
PEERS = Path(".venv-peers/bin/python")
BENCHMARKED = [*PARAMS.models, *RANDOM]
TABLES = ("latency", "peers", "operators")


def peers_python(_):
    """The other tools' interpreter."""
    if not PEERS.is_file():
        raise WorkflowError(
            f"{PEERS}: not found; `make peers` installs the tools that the benchmark compares"
        )
    return str(PEERS)


def benchmark_key(wildcards):
    """Bits, images and seed of the models that are timed; the pipeline's first."""
    images = PARAMS.benchmark.images if wildcards.model in RANDOM else PARAMS.calibration.images
    return f"{PARAMS.bits[0]}-n{images}-s{PARAMS.calibration.seeds[0]}"


def benchmark_calibration(wildcards):
    images, seed = benchmark_key(wildcards).split("-")[1:]
    return f"results/models/{{model}}/calibration-{images}-{seed}.safetensors"


def deployed(wildcards):
    key = benchmark_key(wildcards)
    return {
        f"{recipe}/{mode}": f"results/models/{wildcards.model}/{recipe}/{key}/{mode}/int8.onnx"
        for recipe in dict.fromkeys([*PARAMS.recipes, *PARAMS.benchmark.recipes])
        for mode in MODES
    }


def evaluated(wildcards):
    """Images and labels; random weights get no accuracy."""
    return [] if wildcards.model in RANDOM else ["results/benchmarks/{model}/evaluation.safetensors"]
