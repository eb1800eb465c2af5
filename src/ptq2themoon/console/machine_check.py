"""What a machine has that quantization needs."""

from __future__ import annotations

import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from huggingface_hub import constants

from ptq2themoon.benchmark.machine import machine

FAST = {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}  # instructions for INT8 products
SECONDS = 5.0


def findings() -> Iterator[tuple[str, str]]:
    """(what, how it is) of each thing looked at."""
    found = machine(os.cpu_count() or 1, ["ptq2themoon", "timm", "onnx", "snakemake"])
    yield "Python", platform.python_version()
    versions = {**found["versions"], "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "processor", f"{found['cpu']}, {found['cores']} cores"
    flags = sorted(FAST & set(found["flags"]))
    yield "INT8 instructions", ", ".join(flags) or "none known: INT8 may not be faster than FP32 here"
    yield "GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the CPU is used"
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
    yield "disk, free here", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"
    yield "model hub", hub()


def hub() -> str:
    """Whether weights can be fetched by timm's names."""
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=SECONDS):
            return f"{constants.ENDPOINT} answers"
    except (urllib.error.URLError, OSError) as error:
        return f"{constants.ENDPOINT} does not answer ({error}); give weights with --checkpoint"
