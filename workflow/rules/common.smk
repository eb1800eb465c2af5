# The checked parameters, the names of all results, and what several rules have in common.
import ast
import json
import re
from functools import cache
from itertools import product
from pathlib import Path

from snakemake.exceptions import WorkflowError

from ptq2themoon.vocabulary.parameters import Dataset, Params
from ptq2themoon.vocabulary.modes import MODES
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import Source
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.study import AUTO, BASE, CHANNELWISE, CUSTOMIZED, NORMS
from ptq2themoon.vocabulary.validation import read_yaml

PACKAGE = Path(workflow.basedir, "src/ptq2themoon")
FIGURES = ("top1", "errors_along_network", "attention_overview", "attention_heads")


def checked(make):
    """What `make` returns; what is wrong for the user becomes Snakemake's own error."""
    try:
        return make()
    except UserError as error:
        raise WorkflowError(str(error)) from None


# Read again: Snakemake's own reader takes the last of two equal keys.
for path in workflow.configfiles:
    checked(lambda: read_yaml(Path(path)))

FROM = ", ".join(map(str, workflow.configfiles)) or "--config"
PARAMS = checked(lambda: Params.from_mapping(config, FROM))
checked(lambda: PARAMS.check_files(FROM))

# The models of the benchmark alone, by the name of their folder.
RANDOM = PARAMS.benchmark.random

# What `snakemake study` adds.
STUDY = PARAMS.study
RECIPES = list(dict.fromkeys([*PARAMS.recipes, *PARAMS.benchmark.recipes, *STUDY.recipes, BASE, CHANNELWISE]))

# What is quantized and how often: (recipe, bits, calibration images, seed).
RUNS = list(product(PARAMS.recipes, PARAMS.bits, [PARAMS.calibration.images], PARAMS.calibration.seeds))
KEYS = {run: f"{run[1]}-n{run[2]}-s{run[3]}" for run in RUNS}

# The draw of images that the fused graph is checked on.
CHECK = "n{}-s{}".format(*PARAMS.calibration.check)

# Cores of a job that runs a model: those of this machine shared by the runs; on a cluster, a few.
SHARE = max(1, workflow.cores // len(RUNS)) if workflow.cores else 4


def all_results():
    """Every file that DVC or git keeps: with one of them gone, the rule that makes it runs."""
    files = [f"results/summary.{kind}" for kind in ("csv", "md", "json")]
    for model in PARAMS.models:
        heavy, small = f"results/models/{model}", f"results/{model}"
        files += [f"{heavy}/{name}" for name in ("model.onnx", "model.json", "fused.onnx", "fusion.json")]
        files += [f"{small}/evaluation.csv", f"{small}/fp32/metrics.json"]
        files += [f"{small}/figures/{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg")]
        files += [f"{heavy}/calibration-{CHECK}.safetensors"]
        files += [f"{heavy}/calibration-n{run[2]}-s{run[3]}.safetensors" for run in RUNS]
        files += [f"{heavy}/fp32/{name}.safetensors" for name in ("reference", "attention_maps")]
        for name in (
            *("qparams.json", "qparams.safetensors"),
            *("simulated.safetensors", "attention_maps.safetensors"),
        ):
            files += of_runs(model, f"results/models/{{model}}/{{recipe}}/{{key}}/{name}")
        for name in ("metrics.json", "attention.csv", "operators.csv", "ranking.json"):
            files += of_runs(model, f"results/{{model}}/{{recipe}}/{{key}}/{name}")
        for mode in PARAMS.deploy.modes:
            for name in ("int8.onnx", "deploy.json"):
                files += of_runs(model, f"results/models/{{model}}/{{recipe}}/{{key}}/{mode}/{name}")
        for name in ("runtime.json", "runtime_operators.csv") if PARAMS.deploy.modes else ():
            files += of_runs(model, f"results/{{model}}/{{recipe}}/{{key}}/{name}")
    return files


def of_runs(model, pattern):
    """`pattern` for each recipe, bits and seed of a model."""
    return [pattern.format(model=model, recipe=run[0], key=KEYS[run]) for run in RUNS]


def of_quantized(pattern):
    """The same as an input function."""
    return lambda wildcards: of_runs(wildcards.model, pattern)


def run_names():
    """How figures call each run: by recipe, and by bits and seed where there are several."""
    several_bits, several_seeds = len(PARAMS.bits) > 1, len(PARAMS.calibration.seeds) > 1
    return [
        " ".join([recipe, *[bits] * several_bits, *[f"s{seed}"] * several_seeds])
        for recipe, bits, _, seed in RUNS
    ]


def option(flag, value):
    """FLAG VALUE, or nothing."""
    return [flag, value] if value else []


def flags(flag, names, values):
    """FLAG NAME=VALUE FLAG NAME=VALUE …"""
    pairs = zip(names, values, strict=True)
    return [word for name, value in pairs for word in (flag, f"{name}={value}")]


def code(script, recipes=()):
    """A script, and the modules of the package that it imports, directly or not: its inputs too.

    So are the methods of recipes, which are imported by their names.
    """
    found = [Path(workflow.basedir, f"workflow/scripts/{script}.py")]
    found += [PACKAGE / "methods" / f"{name}.py" for name in methods_of(recipes)]
    for path in found:
        found += [module for module in imported(path) if module not in found]
    return [str(path.relative_to(workflow.basedir)) for path in found]


@cache
def imported(path):
    """The modules of the package that a file imports itself."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ptq2themoon"):
            parts = node.module.split(".")[1:]
            names = [PACKAGE.joinpath(*parts, alias.name).with_suffix(".py") for alias in node.names]
            package = PACKAGE.joinpath(*parts, "__init__.py")
            for module in [PACKAGE.joinpath(*parts).with_suffix(".py"), package, *names]:
                if module.is_file():
                    found[module] = None
    return list(found)


def methods_of(recipes):
    """Names of the methods that recipes call."""
    loaded = [checked(lambda: load_recipe(Path(f"recipes/{name}.yaml"))) for name in recipes]
    return list(dict.fromkeys(call.name for recipe in loaded for call in recipe.methods))


def model_of(wildcards):
    return (PARAMS.models | RANDOM)[wildcards.model]


def weights(wildcards):
    """The local files that hold a model, if it has any."""
    model = model_of(wildcards)
    return [str(path) for path in Source(model.source, model.checkpoint and Path(model.checkpoint)).files()]


def preprocessing_changes(wildcards):
    """What params.yaml sets of a model's preprocessing, as JSON."""
    changes = model_of(wildcards).preprocessing
    return json.dumps(changes.given() if changes else {})


def dataset_of(wildcards):
    if wildcards.model in RANDOM:
        images = f"results/models/{wildcards.model}/images.safetensors"
        return Dataset(kind="arrays", calibration=images, evaluation=images)
    return PARAMS.datasets[model_of(wildcards).dataset]


def image_file(part):
    """The file for `calibration` or `evaluation`; images that are files themselves are not tracked."""

    def files(wildcards):
        dataset = dataset_of(wildcards)
        return [getattr(dataset, part)] if dataset.kind in ("arrays", "csv") else []

    return files


def images_for(wildcards, part):
    """Arguments that name the images for `calibration` or `evaluation`."""
    dataset = dataset_of(wildcards)
    return ["--kind", dataset.kind, "--source", getattr(dataset, part)]


def drawn_from(part):
    """The same, and how they get their labels."""
    return lambda wildcards: images_for(wildcards, part) + option("--classes", dataset_of(wildcards).classes)


def decoders(wildcards):
    """Threads that decode images; arrays need none."""
    return 1 if dataset_of(wildcards).kind == "arrays" else 4


def recipe_files(wildcards):
    """A recipe and those that it extends."""
    return [
        str(path) for path in checked(lambda: load_recipe(Path(f"recipes/{wildcards.recipe}.yaml"))).sources
    ]


def fused_model(script, recipes=()):
    """Inputs of every rule that runs a fused model on the evaluation images, or quantizes by recipes."""
    return {
        "graph": "results/models/{model}/fused.onnx",
        "fusion": "results/models/{model}/fusion.json",
        "info": "results/models/{model}/model.json",
        "manifest": "results/{model}/evaluation.csv",
        "images": image_file("evaluation"),
        "code": code(script, recipes),
    }


def qparams(wildcards):
    """The quantization parameters of a variant `recipe/key`; none for `fp32`."""
    if wildcards.variant == "fp32":
        return []
    return [
        f"results/models/{wildcards.model}/{wildcards.variant}/qparams.{kind}"
        for kind in ("json", "safetensors")
    ]


def summary_entries():
    """--entry MODEL RECIPE BITS IMAGES SEED METRICS for each row of the summary, and --runtime alike."""
    for model in PARAMS.models:
        yield from ("--entry", model, "fp32", "fp32", "-", "-", f"results/{model}/fp32/metrics.json")
        for run, metrics in zip(RUNS, of_runs(model, "results/{model}/{recipe}/{key}/metrics.json")):
            yield from ("--entry", model, *map(str, run), metrics)
            if PARAMS.deploy.modes:
                yield from ("--runtime", model, *map(str, run), metrics.replace("metrics", "runtime"))


def shown(name, label):
    """The PNG of a figure, for the report."""
    return report(
        f"results/{{model}}/figures/{name}.png",
        caption=f"../report/{name}.rst",
        category="{model}",
        subcategory="Figures",
        labels={"figure": label},
    )


def test_images(wildcards):
    """Arguments that name the evaluation images of a model."""
    return images_for(wildcards, "evaluation")


# Outputs of a model for all evaluation images: in floating point, and of a simulation.
REFERENCE = "results/models/{model}/fp32/reference.safetensors"
SIMULATED = "results/models/{model}/{recipe}/{key}/simulated.safetensors"
QPARAMS = multiext("results/models/{model}/{recipe}/{key}/qparams", ".json", ".safetensors")
