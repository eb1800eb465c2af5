"""Scales and other settings of quantizers, where both sides have qparams.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ptq2themoon.console.comparison.noise import SCALE
from ptq2themoon.console.comparison.runs import where
from ptq2themoon.console.comparison.trees import Tree
from ptq2themoon.quantize.qparams import read_qparams
from ptq2themoon.quantize.quantizers import Quantizer
from ptq2themoon.vocabulary.layout import RESULTS

ARRAYS = "qparams.safetensors"


def moved(first: Tree, second: Tree) -> Iterator[str]:
    """A line for each run in which a quantizer differs by more than the last digits."""
    there = set(second.found(f"{RESULTS}/models/**/qparams.json"))
    for name in first.found(f"{RESULTS}/models/**/qparams.json"):
        if name not in there:
            continue
        a, b = (quantizers(tree.root / name) for tree in (first, second))
        lines = [f"{slot}: {what}" for slot in a.keys() & b.keys() if (what := _difference(a[slot], b[slot]))]
        lines += [f"{slot}: only in {first.name}" for slot in a.keys() - b.keys()]
        lines += [f"{slot}: only in {second.name}" for slot in b.keys() - a.keys()]
        if lines:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            yield f"{where(name).removeprefix('models/')}: {min(lines)}{more}"


def quantizers(path: Path) -> dict[str, Quantizer]:
    """The quantizers of a `qparams.json` by place: `blocks.0.fc2 input 0`."""
    return {
        f"{item.operator.name} {tensor.operand} {tensor.position}": tensor.ready()
        for item in read_qparams(path, path.with_name(ARRAYS)).quantized
        for tensor in item.tensors
    }


def _difference(a: Quantizer, b: Quantizer) -> str:
    """What is not the same, or nothing."""
    for name in ("kind", "bits", "axis"):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            return f"{name} {one} → {other}"
    if a.settings() != b.settings():
        return f"{a.settings()} → {b.settings()}"
    others = b.arrays()
    for name, array in a.arrays().items():
        first, second = array.double(), others[name].double()
        if first.shape != second.shape:
            return f"{name} of shape {list(first.shape)} → {list(second.shape)}"
        apart = (second - first).abs() > SCALE * torch.maximum(first.abs(), second.abs())
        if bool(apart.any()):
            worst = int(((second - first).abs() * apart).argmax())
            return f"{name} {first.flatten()[worst]:.6g} → {second.flatten()[worst]:.6g}"
    return ""
