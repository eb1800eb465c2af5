"""Find the sizes of timm's Vision Transformers: the table by which jobs on them are planned."""

from __future__ import annotations

import math
from pathlib import Path

import timm
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary import cost_model
from ptq2themoon.vocabulary.cost_model import Size

ARCHITECTURES = (
    "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224", "deit3_base_patch16_224", "vit_tiny_patch16_224", "vit_small_patch16_224",
    "vit_small_patch32_224", "vit_base_patch16_224", "vit_base_patch32_224", "vit_large_patch16_224",
    "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
    "mobilevit_xxs", "mobilevit_xs", "mobilevit_s",
)  # fmt: skip


def models(out: Path = cost_model.MODELS) -> None:
    """Find the sizes of timm's Vision Transformers.

    Args:
        out: CSV, one row per architecture.
    """
    with Stage("models", inputs=[], outputs=[out], parameters={}) as stage:
        rows = [(name, *measured(name)) for name in sorted(ARCHITECTURES)]
        names = ("architecture", *Size._fields)
        write_csv(stage.temporary(out), names, (dict(zip(names, row, strict=True)) for row in rows))


def measured(name: str) -> Size:
    """Of an architecture of timm, without numbers in its weights."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        size = timm.data.resolve_data_config({}, model=model)["input_size"]
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *size))
    blocks = [module for module in model.modules() if hasattr(module, "num_heads")]
    heads = blocks[-1].num_heads if blocks else 1
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None) or 196
    patches = patches if not name.startswith("swin") else 49
    parameters = sum(parameter.numel() for parameter in model.parameters())
    macs = counter.get_total_flops() / 2
    return Size(
        round(parameters / 1e6, 2), round(macs / 1e9, 3), model.num_classes, heads * patches, math.prod(size)
    )


if __name__ == "__main__":
    run(lambda: tyro.cli(models))
