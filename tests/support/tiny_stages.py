"""The stages of the pipeline on a tiny model and the embedded images."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from scripts import script_path
from tiny_models import randomised, tiny_module

from ptq2themoon.vocabulary.layout import HEADLINES

ROOT = Path(__file__).resolve().parents[2]
Options = dict[str, Any]

MODEL_ARGS = {
    "img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10,
    "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2,
}  # fmt: skip
DATA = {"kind": "arrays", "source": "evaluation.safetensors", "manifest": "out/evaluation.csv"}
GRAPH = {"model": "out", "device": "cpu"}
REFERENCE = {"reference": "out/fp32/reference.safetensors"}
QPARAMS = {"qparams": ["out/q/qparams.json", "out/q/qparams.safetensors"]}
STUDIED = {
    "calibration": "out/calibration.safetensors", "calibration-batch-size": 10, "images": 20, "batch-size": 8,
    **REFERENCE,
}  # fmt: skip
FIGURES = [f"{figure}-{kind}" for figure in ("overview", "heads") for kind in ("png", "svg")]

# Script, and a word where it runs twice; options as the rules give them, paths from the working directory.
# No batch size divides its number of images.
STAGES: dict[str, Options] = {
    "export": {"source": "local-dir:weights", "out-model": "out/model.onnx", "out-info": "out/model.json"},
    "draw_calibration": {
        "kind": "arrays", "source": "calibration.safetensors", "info": "out/model.json",
        "images": 24, "seed": 3, "out": "out/calibration.safetensors",
    },
    "list_evaluation": {
        "kind": "arrays", "source": "evaluation.safetensors", "info": "out/model.json",
        "images": 31, "out": "out/evaluation.csv",
    },
    "fuse": {
        "model": "out/model.onnx", "info": "out/model.json", "images": "out/calibration.safetensors",
        "check-images": 5, "out": "out/fused.onnx", "out-report": "out/fusion.json",
    },
    "calibrate": {
        **GRAPH, "recipe": "recipes/layernorm.yaml", "bits": "w8a8", "images": "out/calibration.safetensors",
        "batch-size": 10, "seed": 3, "out": "out/q/qparams.json", "out-arrays": "out/q/qparams.safetensors",
    },
    "reference": {
        **GRAPH, **DATA, "batch-size": 8,
        "out": "out/fp32/metrics.json", "out-reference": "out/fp32/reference.safetensors",
    },
    "evaluate": {
        **GRAPH, **DATA, **QPARAMS, **REFERENCE, "batch-size": 8,
        "out": "out/q/metrics.json", "out-attention": "out/q/attention.csv",
        "out-simulated": "out/q/simulated.safetensors",
    },
    "reference_part": {
        **GRAPH, **DATA, "batch-size": 8, "shard": "1-of-2", "out": "out/fp32/reference-1-of-2.safetensors",
    },
    "evaluate_part": {
        **GRAPH, **DATA, **QPARAMS, **REFERENCE, "batch-size": 8, "shard": "2-of-2",
        "out": "out/q/simulated-2-of-2.safetensors",
    },
    "operator_errors": {
        **GRAPH, **DATA, **QPARAMS, **REFERENCE, "images": 12, "logits-images": 6, "batch-size": 5,
        "out": "out/q/operators.csv", "out-ranking": "out/q/ranking.json",
    },
    "attention_maps fp32": {
        **GRAPH, **DATA, "recipe": "fp32", "images": 3, "out": "out/fp32/attention_maps.safetensors",
    },
    "attention_maps": {
        **GRAPH, **DATA, **QPARAMS, "recipe": "layernorm", "images": 3,
        "out": "out/q/attention_maps.safetensors",
    },
    "deploy": {
        **{k: v for k, v in GRAPH.items() if k != "device"}, **QPARAMS, "mode": "faithful",
        "out": "out/q/faithful/int8.onnx", "out-report": "out/q/faithful/deploy.json",
    },
    "runtime_part": {
        "model": "out", **DATA, "int8": "out/q/faithful/int8.onnx", "modes": ["faithful"], "batch-size": 8,
        "shard": "1-of-2", "out": "out/q/runtime-1-of-2.safetensors",
    },
    "verify_runtime": {
        **GRAPH, **DATA, **QPARAMS, **REFERENCE, "simulated": "out/q/simulated.safetensors",
        "int8": "out/q/faithful/int8.onnx",
        "deployed": "out/q/faithful/deploy.json", "batch-size": 8, "operator-images": 2,
        "out": "out/q/runtime.json", "out-operators": "out/q/runtime_operators.csv",
    },
    "summarize": {
        "entry": [
            "tiny fp32 fp32 - - out/fp32/metrics.json",
            "tiny layernorm w8a8 24 3 out/q/metrics.json",
        ],
        "runtime": ["tiny layernorm w8a8 24 3 out/q/runtime.json"],
        "ship": "tiny/layernorm=out/q/faithful/deploy.json",
        "out-csv": "out/summary.csv", "out-md": "out/summary.md", "out-html": "out/summary.html",
        "out-headlines": [f"out/{name}.json" for name in HEADLINES],
    },
    "plot_top1": {
        "summary": "out/summary.csv", "model": "tiny", "dpi": 60,
        "out-png": "out/figures/top1.png", "out-svg": "out/figures/top1.svg",
    },
    "plot_errors": {
        "table": "layernorm=out/q/operators.csv", "mode-images": "local=12", "dpi": 60,
        "out-png": "out/figures/errors.png", "out-svg": "out/figures/errors.svg",
    },
    "plot_attention": {
        "maps": [f"{name}=out/{name}/attention_maps.safetensors" for name in ("fp32", "q")],
        "label-names": "out/model.json", "rows": 2, "dpi": 60,
        **{f"out-{f}": f"out/figures/{f.replace('-', '.')}" for f in FIGURES},
        **{f"out-{f}-csv": f"out/figures/{f}.csv" for f in ("overview", "heads")},
    },
    "study_rollout fp32": {
        **GRAPH, **DATA, "recipe": "fp32", "images": 3, "out": "out/fp32/rollout.safetensors",
    },
    "study_rollout": {
        **GRAPH, **DATA, **QPARAMS, "recipe": "layernorm", "images": 3, "out": "out/q/rollout.safetensors",
    },
    "plot_rollout": {
        "maps": [f"{name}=out/{name}/rollout.safetensors" for name in ("fp32", "q")],
        "label-names": "out/model.json", "rows": 2, "dpi": 60,
        **{f"out-{kind}": f"out/study/attention_rollout.{kind}" for kind in ("png", "svg", "csv")},
    },
    "study_fidelity": {
        "fusion": "out/fusion.json", "table": "layernorm=out/q/attention.csv", "bits": "w8a8",
        **{f"out-{kind}": f"out/study/attention_fidelity.{kind}" for kind in ("csv", "md")},
    },
    "study_activations": {
        **GRAPH, **DATA, "images": 9, "batch-size": 4,
        "out": "out/study/activations.csv", "out-largest": "out/study/activations_largest.csv",
    },
    "plot_study_activations": {
        "channels": "out/study/activations.csv", "largest": "out/study/activations_largest.csv", "block": -1,
        "dpi": 60, **{f"out-{kind}": f"out/study/activations.{kind}" for kind in ("png", "svg")},
        "out-block": "out/study/activations_block.csv",
        **{f"out-block-{kind}": f"out/study/activations_block.{kind}" for kind in ("png", "svg")},
    },
    "calibrate per channel": {
        **GRAPH, "recipe": "recipes/layernorm_all.yaml", "bits": "w8a8",
        "images": "out/calibration.safetensors", "batch-size": 10, "seed": 3,
        "out": "out/c/qparams.json", "out-arrays": "out/c/qparams.safetensors",
    },
    "study_errors": {
        **GRAPH, **DATA, "images": 9, "batch-size": 4, "block": -1, "per-tensor": QPARAMS["qparams"],
        "per-channel": ["out/c/qparams.json", "out/c/qparams.safetensors"],
        "out": "out/study/errors.csv", "out-average": "out/study/errors_average.csv",
        "out-histograms": "out/study/error_histograms.csv", "out-channels": "out/study/error_channels.csv",
    },
    "plot_study_errors": {
        "errors": "out/study/errors.csv", "average": "out/study/errors_average.csv",
        "histograms": "out/study/error_histograms.csv", "dpi": 60,
        "out": ["out/study/errors.png", "out/study/errors.svg"],
        "out-average": [f"out/study/errors_average.{kind}" for kind in ("png", "svg")],
        "out-histograms": [f"out/study/error_histograms.{kind}" for kind in ("png", "svg")],
    },
    "study_bits": {
        **GRAPH, **DATA, **STUDIED, "recipe": "recipes/vanilla.yaml", "bits": ["w6a6", "w3a3"], "loss": 200.0,
        "out": "out/study/bits.json", "out-metrics": "out/study/fp32.json",
    },
    "study_auto": {
        **GRAPH, "base": "recipes/vanilla.yaml", "channelwise": "recipes/layernorm_all.yaml",
        "bits-from": "out/study/bits.json", "calibration": "out/calibration.safetensors", "batch-size": 10,
        "images": 12, "share": 0.5, "seed": 3, "out": "out/study/auto.yaml",
        "out-ranking": "out/study/ranking.csv", "out-search": "out/study/search.csv",
    },
    "study_ablation": {
        **GRAPH, **DATA, **STUDIED, "recipes": ["recipes/layernorm.yaml", "recipes/layernorm_fc2.yaml"],
        "variant": "input", "bits": "w8a8", "seed": 3, "out": "out/study/ablation/wide.csv",
    },
    "study_ablation auto": {
        **GRAPH, **DATA, **STUDIED, "recipes": ["out/study/auto.yaml", "recipes/vanilla.yaml"],
        "variant": "once", "bits-from": "out/study/bits.json", "seed": 3,
        "out": "out/study/ablation/narrow.csv",
    },
    "study_table": {
        "name": "tiny", "variant": "input", "recipes": ["vanilla", "layernorm", "layernorm_fc2", "auto"],
        "runs": ["out/study/ablation/wide.csv"], "plain": ["out/study/ablation/narrow.csv"],
        "metrics": "out/study/fp32.json", "published": "published/ablation.csv",
        "out": "out/study/ablation_input.csv", "out-md": "out/study/ablation_input.md",
    },
    "study_table once": {
        "name": "tiny", "variant": "once", "recipes": ["vanilla", "auto"],
        "runs": ["out/study/ablation/narrow.csv"], "metrics": "out/study/fp32.json",
        "published": "published/ablation.csv",
        "out": "out/study/ablation_once.csv", "out-md": "out/study/ablation_once.md",
    },
    "plot_study_published": {
        "errors": "published/errors_by_block.csv", "models": "published/models.csv", "dpi": 60,
        **{
            f"out-{name}": [f"out/study/{name}_published.{kind}" for kind in ("png", "svg", "csv")]
            for name in ("errors", "fusion")
        },
    },
    "plot_study_ablation": {
        "name": "tiny", "variant": "input", "table": "out/study/ablation_input.csv", "dpi": 60,
        **{f"out-{kind}": f"out/study/ablation_input.{kind}" for kind in ("png", "svg")},
    },
    "plot_study_ranking": {
        "name": "tiny", "ranking": "out/study/ranking.csv", "search": "out/study/search.csv",
        "bits-from": "out/study/bits.json", "share": 0.5, "dpi": 60,
        **{f"out-{kind}": f"out/study/ranking.{kind}" for kind in ("png", "svg")},
    },
    "study_models": {
        "models": ["tiny"], "plain": ["out/study/ablation_input.csv"],
        "once": ["out/study/ablation_once.csv"],
        "published": "published/models.csv", "out": "out/study/models.csv", "out-md": "out/study/models.md",
    },
    "plot_study_models": {
        "table": "out/study/models.csv", "dpi": 60,
        **{f"out-{kind}": f"out/study/models.{kind}" for kind in ("png", "svg")},
    },
    "leaderboard_row": {
        **GRAPH, **DATA, **REFERENCE, "seeds": [3, 4], "batch-size": 8, "images": 20,
        "qparams": ["out/q/qparams.json", "out/c/qparams.json"],
        "arrays": ["out/q/qparams.safetensors", "out/c/qparams.safetensors"],
        "out": "out/board/w8a8-n24.json",
    },
    "leaderboard_kernels": {
        "model": "out", "bits": ["w8a8"], "qparams": "out/q/qparams.json",
        "arrays": "out/q/qparams.safetensors", "out": "out/board/kernels.csv",
    },
    "leaderboard_cost": {
        "bits": ["w8a8"], "seeds": [3], "qparams": "out/q/qparams.json", "times": "published/calibrate.tsv",
        "out": "out/board/cost.csv",
    },
    "leaderboard_tables": {
        "entry": ["tiny layernorm w8a8 24 out/board/w8a8-n24.json"], "kernels": "out/board/kernels.csv",
        "costs": "out/board/cost.csv", "bases": ["layernorm"], "out": "out/board/leaderboard.csv",
        "out-costs": "out/board/all_costs.csv", "out-md": "out/board/leaderboard.md",
    },
    "leaderboard_published": {"published": "published/imagenet.csv", "out": "out/board/published.md"},
    "plot_accuracy_by_bits": {
        "model": "tiny", "table": "out/board/leaderboard.csv", "dpi": 60,
        **{f"out-{kind}": f"out/board/accuracy_by_bits.{kind}" for kind in ("png", "svg")},
    },
    "plot_accuracy_by_size": {
        "model": "tiny", "table": "out/board/leaderboard.csv", "info": "out/model.json", "dpi": 60,
        **{f"out-{kind}": f"out/board/accuracy_by_size.{kind}" for kind in ("png", "svg")},
    },
    "plot_accuracy_by_cost": {
        "model": "tiny", "table": "out/board/leaderboard.csv", "costs": "out/board/all_costs.csv", "dpi": 60,
        **{f"out-{kind}": f"out/board/accuracy_by_cost.{kind}" for kind in ("png", "svg")},
    },
    "learning_curve_run": {
        **GRAPH, **DATA, **STUDIED, "recipe": "recipes/adaround.yaml", "bits": "w4a4", "iterations": [0, 3],
        "seed": 3, "out": "out/learning_curve/adaround.csv",
    },
    "plot_accuracy_by_iterations": {
        "model": "tiny", "curves": "out/learning_curve/adaround.csv", "dpi": 60,
        **{f"out-{kind}": f"out/learning_curve/accuracy_by_iterations.{kind}" for kind in ("png", "svg")},
    },
    "data_free_run": {
        **GRAPH, **DATA, **STUDIED, "recipe": "recipes/psaq_vit_noise.yaml", "bits": ["w8a8", "w4a4"],
        "seed": 3,
        "out": "out/data_free/psaq_vit_noise.csv", "out-images": "out/data_free/psaq_vit_noise.safetensors",
    },
    "data_free_table": {
        "sources": ["noise=psaq_vit_noise"], "runs": "out/data_free/psaq_vit_noise.csv",
        "out": "out/data_free/data_free.csv",
    },
    "plot_data_free": {
        "model": "tiny", "table": "out/data_free/data_free.csv", "shown": 5, "dpi": 60,
        "images": "noise=out/data_free/psaq_vit_noise.safetensors",
        **{f"out-{kind}": f"out/data_free/data_free.{kind}" for kind in ("png", "svg")},
    },
}  # fmt: skip
SPLIT = ("entry", "runtime")  # options whose values are several words


class Ended(NamedTuple):
    """How a stage ended: exit status, what it printed, and where."""

    status: int
    out: str
    err: str


def command(stage: str, **changes: Any) -> list[str]:
    """Script and arguments of a stage; `changes` replace options (`_` for `-`), None takes one away."""
    options = STAGES[stage] | {name.replace("_", "-"): value for name, value in changes.items()}
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        if name in SPLIT:
            words += [f"--{name}", *(word for each in values for word in each.split())]
        elif value is not None:
            words += [f"--{name}", *map(str, values)]
    return [str(script_path(f"{stage.partition(' ')[0]}.py")), *words]


def run_stage(folder: Path, stage: str, **changes: Any) -> Ended:
    """Run a stage in `folder`; an exception that the script lets through is not caught here either."""
    script, *words = command(stage, **changes)
    out, err, before, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [script, *words]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    return Ended(status, out.getvalue(), err.getvalue())


def between(stage: str, inputs: str, outputs: str) -> Options:
    """Options with which a stage reads `inputs`/ and writes `outputs`/ instead of out/."""

    def moved(value: Any, folder: str) -> Any:
        if isinstance(value, list):
            return [moved(item, folder) for item in value]
        if value == "out":  # the folder of a fused model
            return folder
        return value.replace("out/", f"{folder}/") if isinstance(value, str) else value

    options = STAGES[stage].items()
    return {name: moved(value, outputs if name.startswith("out") else inputs) for name, value in options}


def outputs(stage: str) -> list[str]:
    """What a stage writes, its main output first."""
    values = [value for name, value in STAGES[stage].items() if name.startswith("out")]
    return [path for value in values for path in (value if isinstance(value, list) else [value])]


def process(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with `words` as a process of its own, with as many threads as this one."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests/support'}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def write_weights(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """A timm model in local files, its parameters random."""
    folder.mkdir(parents=True)
    arguments = MODEL_ARGS | overrides
    model = randomised(tiny_module(**arguments), seed)
    save_file(model.state_dict(), folder / "model.safetensors")
    size = [arguments["in_chans"], arguments["img_size"], arguments["img_size"]]
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": arguments["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": size, "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 1.0,
            "mean": [0.286] * size[0], "std": [0.353] * size[0], "num_classes": arguments["num_classes"],
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_inputs(folder: Path, seed: int = 0) -> Path:
    """What the first stages read: weights, images, recipes, published figures."""
    write_weights(folder / "weights", seed)
    for name in ("calibration", "evaluation"):
        (folder / f"{name}.safetensors").symlink_to(ROOT / f"resources/demo/{name}.safetensors")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(ROOT / "resources/study", folder / "published")
    shutil.copy(ROOT / "resources/published/imagenet.csv", folder / "published")
    (folder / "published/calibrate.tsv").write_text("s\tmax_rss\n12.5\t640.25\n")
    return folder


@cache
def chain(base: Path) -> Path:
    """A folder below `base` in which every stage ran; not to be changed, for it is made once."""
    folder = write_inputs(base / "chain")
    for stage in STAGES:
        ended = run_stage(folder, stage)
        assert ended.status == 0, f"{stage}: {ended.err}"
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file under `folder`, by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
