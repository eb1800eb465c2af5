"""A clone with a tiny model and few of the embedded images, in which one target beside the default is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clones import ROOT, clone, run
from tiny_stages import write_weights

PARAMS: dict[str, Any] = {
    "models": {"tiny": {"source": "local-dir:weights", "dataset": "few"}},
    "datasets": {
        "few": {
            "kind": "arrays",
            "calibration": "resources/demo/calibration.safetensors",
            "evaluation": "resources/demo/evaluation.safetensors",
        }
    },
    "recipes": ["papers"],
    "bits": ["w8a8"],
    "calibration": {"images": 6, "batch_size": 4, "seeds": [0]},
    "evaluation": {"images": 40, "batch_size": 16},
    "errors": {"images": 4, "logits_images": 2},
    "attention": {"images": 1},
    "deploy": {"modes": []},
    "plots": {"dpi": 60},
}


def tiny_clone(folder: Path) -> Path:
    """Without parameters yet."""
    clone(folder)
    write_weights(folder / "weights")
    (folder / "resources").symlink_to(ROOT / "resources")
    return folder


def snakemake(folder: Path, *options: str) -> str:
    """What it says on two cores."""
    return run(folder, "snakemake", "--cores", "2", *options)
