"""Graphs in ONNX Runtime: its sessions, what they compute, and by which kernels."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.graph.editing.one_message import fits_one_message
from ptq2themoon.graph.editing.onnx_graph import copied
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.onnx_data import check_data, data_beside

TOLERANCE = 1e-4  # largest difference of an output of scale 1 between two forms of one model
INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv", "DynamicQuantizeMatMul")
FLOAT_KERNELS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv")
Runner = Callable[[np.ndarray], np.ndarray]  # images [B, C, H, W] to the first output [B, ...], float32


def session(
    model: Path | onnx.ModelProto,
    *,
    quantized: bool,
    threads: int = 1,
    optimise: bool = True,
    optimised: Path | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU.

    Args:
        quantized: whether the model is an integer one, for which two settings differ.
        threads: within an operator; 0: one on each core.
        optimise: let ONNX Runtime rewrite the graph.
        optimised: where to write the graph that really runs.
        profile: how the name of the profile's file begins; None: no profile.

    Raises:
        UserError: a graph that ONNX Runtime refuses.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised, and said by who reads them
    # No thread may still turn when another session is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if quantized:
        # With a fixed batch this fusion leaves a float Gemm behind dequantized weights: slower than FP32.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "MatMulAddFusion")
    if quantized and not has_vnni():
        # Else the kernels add two products in 16 bits, which can overflow; with VNNI this only costs time.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised:
        options.optimized_model_filepath = str(optimised)
        beside = data_beside(optimised).name
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", beside)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        with _readable(model) as source:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's own have no common ancestor
        name = model if isinstance(model, Path) else "the graph"
        raise UserError(f"{name}: ONNX Runtime cannot run it ({_reason(error)})") from error


@contextmanager
def _readable(model: Path | onnx.ModelProto) -> Iterator[str | bytes]:
    """What ONNX Runtime reads: a file, bytes, or of a model that is more than a message a file for the time.

    Raises:
        UserError: a file without the data that it needs.
    """
    if isinstance(model, Path):
        check_data(model)
        yield str(model)
    elif fits_one_message(model):
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            write_model(model, path)
            yield str(path)


@cache
def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor adds products of 8 bits in 32; False where it does not tell."""
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return re.search(r"\bavx(512)?_vnni\b", flags) is not None


def runner(running: onnxruntime.InferenceSession) -> Runner:
    """A session of one input as a function of images; one of a fixed batch takes as many at a time."""
    (image,) = running.get_inputs()
    fixed = next((size for size in image.shape[:1] if isinstance(size, int)), None)

    def run(images: np.ndarray) -> np.ndarray:
        if fixed in (None, len(images)):
            return running.run(None, {image.name: images})[0]
        parts = [images[start : start + fixed] for start in range(0, len(images), fixed)]
        outputs = [running.run(None, {image.name: _filled(part, fixed)})[0][: len(part)] for part in parts]
        return np.concatenate(outputs)

    return run


def run_onnx(model: Path | onnx.ModelProto, images: np.ndarray, at_once: int | None = None) -> np.ndarray:
    """First output of a model in floating point for images [B, C, H, W], float32: the reference.

    Args:
        at_once: images in a run, all by default; a graph of a fixed batch takes as many as that is.

    Raises:
        UserError: a graph that ONNX Runtime refuses, or images that do not fit it.
    """
    running = session(model, quantized=False, threads=0)
    try:
        (image,) = running.get_inputs()
        fixed = next((size for size in image.shape[:1] if isinstance(size, int)), None)
        size = fixed or at_once or len(images)
        run, outputs = runner(running), []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            outputs.append(run(part))
        return np.concatenate(outputs)
    except Exception as error:  # ONNX Runtime's own have no common ancestor
        raise UserError(
            f"ONNX Runtime cannot run the graph on {list(images.shape)} ({_reason(error)})"
        ) from error


def where_not_finite(model: onnx.ModelProto, images: np.ndarray) -> str:
    """` at operator 'x' (Type)`: the first that makes NaN of none, else infinity, else has such a constant.

    Args:
        images: [B, C, H, W], float32; they run one at a time where the graph may.
    """
    every = copied(model)
    known = {value.name for value in every.graph.output}
    made = [name for node in every.graph.node for name in node.output if name and name not in known]
    every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    running = session(every, quantized=False, optimise=False)
    (image,) = running.get_inputs()
    size = image.shape[0] if isinstance(image.shape[0], int) else 1
    names = [output.name for output in running.get_outputs()]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in every.graph.initializer}
    runs = []
    for start in range(0, len(images), size):
        part = _filled(images[start : start + size], size)
        runs.append(dict(zip(names, running.run(None, {image.name: part}), strict=True)))
    for test, constants in ((np.isnan, held), (np.isinf, held), (np.isinf, {})):
        for values in runs:
            numbers = {**values, **constants}.items()
            odd = {name for name, value in numbers if value.dtype.kind == "f" and test(value).any()}
            for node in every.graph.node:
                if odd.intersection(node.output) and not odd.intersection(node.input):
                    return f" at operator {node.name or node.output[0]!r} ({node.op_type})"
    return ""


def tolerated(outputs: np.ndarray) -> float:
    """How far another form of the model may be from these outputs: by more, the larger they are.

    Where they are small, as far as if they had a root mean square of 1.
    """
    return TOLERANCE * max(1.0, float(np.sqrt(np.square(outputs, dtype=np.float64).mean())))


def _filled(images: np.ndarray, size: int) -> np.ndarray:
    """So many images, the last one repeated."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


def _reason(error: Exception) -> str:
    """The message in one line, of which the beginning tells."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:399]}…"


def kernel_counts(optimised: Path) -> Counter[str]:
    """How many operators of each type a graph has that `session` wrote as the one which really runs."""
    model = onnx.load(optimised, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def integer_products(kernels: Mapping[str, int]) -> int:
    """How many of `product_kernels` are integer ones."""
    return sum(count for kernel, count in kernels.items() if kernel in INTEGER_KERNELS)


def product_kernels(model: Path | onnx.ModelProto, folder: Path, *, quantized: bool) -> dict[str, int]:
    """How many matrix products and convolutions run on which kernels, integer ones first.

    Args:
        folder: for the optimised graph, which is read and left there.
        quantized: whether the model is an integer one.
    """
    session(model, quantized=quantized, optimised=folder / "optimised.onnx")
    counts = kernel_counts(folder / "optimised.onnx")
    return {kernel: counts[kernel] for kernel in (*INTEGER_KERNELS, *FLOAT_KERNELS) if counts[kernel]}
