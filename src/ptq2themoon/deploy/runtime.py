"""Sessions in the runtimes that execute INT8 models, and which of their kernels do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from ptq2themoon.errors import UserError

INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv")


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
    # Without VNNI the fast kernels add two products in 16 bits, which can overflow.
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


def kernel_counts(optimised: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs, as `session` wrote it."""
    return Counter(node.op_type for node in onnx.load(optimised).graph.node)
