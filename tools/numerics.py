"""Run the default again with kernels for other processors, and say what comes out otherwise.

Libraries choose their kernels by the instructions that the processor has, and can be told to leave some
unused: their sums are then those of an older processor. ONNX Runtime cannot be told; it computes as ever.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from clones import ended, environment, ready, started
from finished_run import differing, results
from safetensors.numpy import load_file

from ptq2themoon.console.comparison.page import lines
from ptq2themoon.console.comparison.scales import quantizers
from ptq2themoon.console.comparison.trees import opened
from ptq2themoon.console.comparison.whole import compared
from ptq2themoon.safety.sidecars import SIDECAR
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary import layout
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.records import parsed

# For PyTorch's own kernels, oneDNN, MKL, OpenBLAS and the C library, in this order.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ",
}
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Nehalem",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX2,-AVX,-FMA",
}
ALL = "all instructions"  # what the others are held against
# Threads of a job at most, and variables.
RUNS: dict[str, tuple[int, dict[str, str]]] = {
    ALL: (1, {}),
    "no AVX-512": (1, AVX2),
    "no AVX": (1, SSE),
    "two threads": (2, {}),
}
COLUMNS = (
    "run", "kernels", "threads", "seconds", "results", "differing", "made_differing", "fp32_logits", "scales",
    "top1_points", "agreement_points", "sqnr_db", "operator_db", "other_worst", "figures", "beyond_noise",
    "verdict",
)  # fmt: skip
MADE = {"model.onnx", "fused.onnx", "model.json", "fusion.json", "evaluation.csv"}  # and calibration images


def numerics(
    params: Path = Path("params.yaml"),
    runs: tuple[str, ...] = tuple(RUNS),
    out: Path = Path("results/benchmarks/numerics.csv"),
) -> None:
    """Hold runs with other kernels, and with other threads, against one with all that this processor has.

    Args:
        params: the parameter file.
        runs: which of them; the first is made at any rate.
        out: CSV, one row per run. Differences are the largest: `fp32_logits` and `scales` relative,
            `top1_points` and `agreement_points` in percentage points, `sqnr_db` of logits and `operator_db`
            of one operator in dB; `other_worst` counts runs whose ten worst operators are others.
    """
    if unknown := [name for name in runs if name not in RUNS]:
        raise UserError(f"run {unknown[0]!r} is unknown; {nearest(unknown[0], RUNS)}")
    text, rows = params.read_text(encoding="utf-8"), []
    with (
        Stage("numerics", inputs=[params], outputs=[out], parameters={}) as stage,
        TemporaryDirectory(prefix="numerics-") as place,
    ):
        folder = Path(place)
        first = folder / "0"
        for number, name in enumerate(dict.fromkeys([ALL, *runs])):
            threads, variables = RUNS[name]
            tree = ready(folder / str(number), text)
            start = time.monotonic()
            env = environment(tree, **variables)
            ended(started(tree, "--cores", "2", "--max-threads", str(threads), env=env))
            seconds = round(time.monotonic() - start)
            row = {"run": name, "kernels": kernels(env), "threads": threads, "seconds": seconds}
            rows.append(row if tree == first else {**row, **against(first, tree)})
            print(rows[-1], flush=True)
        write_csv(stage.temporary(out), COLUMNS, rows)


def kernels(env: dict[str, str]) -> str:
    """Which of its kernels PyTorch takes, by its own word."""
    said = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    return subprocess.run(
        [sys.executable, "-c", said], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def against(first: Path, other: Path) -> dict[str, Any]:
    """How far results are from those of the first run."""
    files = [name for name in results(first) if not name.endswith(SIDECAR)]
    apart = [name for name in differing(first, other) if not name.endswith(SIDECAR)]
    with opened(str(first)) as one, opened(str(other)) as two:
        found = compared(one, two)
    change = {figure: abs(figure.second - figure.first) for figure in found.figures}

    def largest(*names: str) -> float:
        return max((d for figure, d in change.items() if figure.name.startswith(names)), default=0)

    return {
        "results": len(files),
        "differing": len(apart),
        "made_differing": sum(is_made(Path(name)) for name in apart),
        "fp32_logits": f"{max(logits(first, other)):.1e}",
        "scales": f"{max(scales(first, other)):.1e}",
        "top1_points": round(largest("top1"), 2),
        "agreement_points": round(largest("agreement"), 2),
        "sqnr_db": round(largest("logits_sqnr_db"), 3),
        "operator_db": round(largest("SQNR of "), 3),
        "other_worst": sum(a != b for a, b in worst(first, other)),
        "figures": len(found.figures),
        "beyond_noise": len(found.beyond) + len(found.made) + len(found.scales) + len(found.alone),
        "verdict": list(lines(found))[-1],
    }


def is_made(path: Path) -> bool:
    """Whether a result is a graph or a list of images: what every run of a model begins with."""
    return path.name in MADE or path.name.startswith("calibration-n")


def logits(first: Path, other: Path) -> Iterator[float]:
    """Of each model, the largest difference of its FP32 outputs, as a share of the largest output."""
    for name in paths(first, layout.REFERENCE.format(model="*")):
        one, two = (load_file(tree / name)["output"] for tree in (first, other))
        yield float(abs(two - one).max() / abs(one).max())


def scales(first: Path, other: Path) -> Iterator[float]:
    """Of each quantizer, the largest change of a scale as a share of it."""
    for name in paths(first, f"{layout.RESULTS}/models/**/qparams.json"):
        one, two = quantizers(first / name), quantizers(other / name)
        for place, quantizer in one.items():
            a, b = (side.arrays()["scale"].double() for side in (quantizer, two[place]))
            yield float(((b - a).abs() / a).max())


def worst(first: Path, other: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The ten worst operators of each run, worst first, in both trees."""
    for name in paths(first, f"{layout.RESULTS}/*/*/*/ranking.json"):
        one, two = (
            list(parsed((tree / name).read_text("utf-8"))["mean_sqnr_db"])[:10] for tree in (first, other)
        )
        yield one, two


def paths(tree: Path, pattern: str) -> list[Path]:
    """Files of a tree, relative to it."""
    return sorted(path.relative_to(tree) for path in tree.glob(pattern))


if __name__ == "__main__":
    run(lambda: tyro.cli(numerics))
