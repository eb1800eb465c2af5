"""What takes time in ONNX Runtime; models opened in OpenVINO, and what really runs there."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ptq2themoon.graph.editing.onnx_run import Runner, runner, session
from ptq2themoon.vocabulary.errors import UserError

Precision = Literal["f32", "bf16"]
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")  # OpenVINO's; it fuses an attention into a subgraph


def operator_shares(
    path: Path, threads: int, images: np.ndarray, runs: int, folder: Path, *, quantized: bool
) -> list[dict[str, Any]]:
    """Operators of ONNX Runtime's profile: count, milliseconds per run, share of the time; longest first."""
    running = session(path, threads=threads, quantized=quantized, profile=folder / "profile")
    run = runner(running)
    for _ in range(runs + 1):
        run(images)
    events = json.loads(Path(running.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]][event["name"]].append(event["dur"] / 1000)
    total = {name: sum(float(np.median(v)) for v in nodes.values()) for name, nodes in times.items()}
    everything = sum(total.values())
    return [
        {"operator": name, "count": len(times[name]), "ms": round(ms, 4), "share": round(ms / everything, 4)}
        for name, ms in sorted(total.items(), key=lambda item: -item[1])
    ]


class OpenVino:
    """OpenVINO with its settings; its package is imported when one is made.

    Args:
        threads: of one inference.

    Raises:
        UserError: it is not installed.
    """

    def __init__(self, threads: int) -> None:
        try:
            import openvino
        except ImportError:
            raise UserError("openvino is not installed here; `make peers` makes .venv-peers") from None
        self._core = openvino.Core()
        self._settings: Mapping[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }

    def read(self, path: Path) -> Any:
        """OpenVINO's model of an ONNX file."""
        return self._core.read_model(str(path))

    def products(self, path: Path) -> set[str]:
        """Names of a model's matrix products."""
        return {
            node.get_friendly_name() for node in self.read(path).get_ops() if node.get_type_name() == "MatMul"
        }

    def compile(self, path: Path, shape: tuple[int, ...], precision: Precision) -> Any:
        """A file for images of one shape: with a dynamic batch it is slower by a quarter and more.

        Args:
            precision: of what is not quantized, as far as kernels have it.
        """
        model = self.read(path)
        model.reshape(list(shape))
        return self._core.compile_model(
            model, "CPU", {**self._settings, "INFERENCE_PRECISION_HINT": precision}
        )


def openvino_runner(compiled: Any) -> Runner:
    """A function from images [B, C, H, W] to the output of a compiled OpenVINO model."""
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> np.ndarray:
        (found,) = request.infer({0: images}, share_inputs=True, share_outputs=True).values()
        return found

    return run


def openvino_kernels(compiled: Any, products: set[str]) -> dict[str, int]:
    """How many matrix products OpenVINO computes by which kernel: type and precision, from its own graph.

    Args:
        products: names of the model's matrix products, to know a subgraph that is an attention.
    """
    found: dict[str, int] = defaultdict(int)
    for node in compiled.get_runtime_model().get_ops():
        kind, precision = (node.rt_info[key].astype(str) for key in ("layerType", "runtimePrecision"))
        parts = set(node.rt_info["originalLayersNames"].astype(str).split(","))
        if kind in PRODUCTS or (kind == "Subgraph" and parts & products):
            name = "attention" if kind == "Subgraph" else kind
            found[f"{name}:{'i8' if precision in ('i8', 'u8') else precision}"] += 1
    return dict(sorted(found.items()))
