"""Sessions in the runtimes that execute INT8 models, and which of their kernels do."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ptq2themoon.vocabulary.errors import UserError

INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv")
FLOAT_KERNELS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv")


def session(
    model: Path | onnx.ModelProto, *, threads: int = 1, optimise: bool = True, optimised: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU.

    Args:
        threads: within an operator.
        optimised: where to write the graph that really runs.

    Raises:
        UserError: a graph that ONNX Runtime refuses.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # With a fixed batch this fusion leaves a float Gemm behind dequantized weights: slower than FP32.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "MatMulAddFusion")
    if not has_vnni():
        # Else the kernels add two products in 16 bits, which can overflow; with VNNI this only costs time.
        options.add_session_config_entry("session.x64quantprecision", "1")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if optimised:
        options.optimized_model_filepath = str(optimised)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no common ancestor
        reason = " ".join(str(error).split())
        name = model if isinstance(model, Path) else "the graph"
        raise UserError(f"{name}: ONNX Runtime cannot run it ({reason})") from error


@cache
def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor adds products of 8 bits in 32; False where it does not tell."""
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return re.search(r"\bavx(512)?_vnni\b", flags) is not None


def runner(running: onnxruntime.InferenceSession) -> Callable[[np.ndarray], np.ndarray]:
    """The session as a function of images, float32 [B, C, H, W]; gives its first output."""
    (name,) = (item.name for item in running.get_inputs())
    return lambda images: running.run(None, {name: images})[0]


def openvino_runner(model: Path, *, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """A model compiled by OpenVINO for the CPU, float32 where it is not quantized; as `runner`.

    Raises:
        UserError: OpenVINO is not installed, or refuses the file.
    """
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        raise UserError("OpenVINO is not installed; `pip install openvino` to run this") from None
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = core.compile_model(core.read_model(str(model)), "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{model}: OpenVINO cannot run it ({reason})") from error
    return lambda images: compiled(images)[0]


def kernel_counts(optimised: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs, as `session` wrote it."""
    return Counter(node.op_type for node in onnx.load(optimised).graph.node)


def integer_kernels(model: Path | onnx.ModelProto, folder: Path) -> dict[str, int]:
    """How many products and convolutions run on which kernels, integer ones first.

    Args:
        folder: for the optimised graph, which is read and left there.
    """
    session(model, optimised=folder / "optimised.onnx")
    counts = kernel_counts(folder / "optimised.onnx")
    return {kernel: counts[kernel] for kernel in (*INTEGER_KERNELS, *FLOAT_KERNELS) if counts[kernel]}
