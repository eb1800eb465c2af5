"""Published figures for people: what the papers report, and what it cannot be compared for."""

from __future__ import annotations

import pandas as pd

from ptq2themoon.tables.markdown import aligned_table

COLUMNS = ("method", "model", "bits", "top1", "fp32", "source", "checkpoint", "note")
NOTHING, UNKNOWN = "–", "*"
FLOATING = "FP32, as nearly all state it"
MODELS = ("ViT-S", "ViT-B", "DeiT-T", "DeiT-S", "DeiT-B", "Swin-S", "Swin-B")
CAVEATS = """\
- **Not with the leaderboard's own rows.** These are top-1 on ImageNet-1k's validation images at 224 x 224
  of ImageNet models; the leaderboard measures the models of params.yaml on their own images.
- **Checkpoints differ under one name.** A change counts against the FP32 of its own figure only, and that is
  the one that nearly all papers state, not always the source's own. ViT-B with 84.54 is timm's
  `vit_base_patch16_224.augreg_in21k_ft_in1k`; newer timm gives one with 85.10 for the bare name. Swin-B with
  85.27 was pretrained on 22k classes; FQ-ViT's, with 83.60, on 1k.
- **Baselines drift.** QDrop at W4A4 on ViT-S stands at 17.77, 21.24, 67.62 and 71.84 in four papers: a figure
  that others ran is theirs, and the source says whose.
- **What is left in high precision differs.** LayerNorm, softmax and GELU are computed in floating point by
  all but FQ-ViT and I-ViT. AdaLog, APHQ-ViT and FIMA-Q keep the patch embedding's input at 8 bits, PTQ4ViT
  in floating point; NoisyQuant's released code leaves out the head and the attention products.
- **Granularity differs under one word.** PTQ4ViT has a scale per head in the attention products, and
  FIMA-Q's configuration one per head and per token position, where the papers say layer-wise.
- **Effort differs.** Some figures are of calibration alone, some of weights trained block by block, and
  I-ViT's of training with quantization."""


def published_page(table: pd.DataFrame) -> str:
    """A table for each bits: one row per method and source, floating point first."""
    lines = ["# Published figures, and what they cannot be compared for", ""]
    lines += [
        "Nothing here was measured by this project. Top-1 in %; in brackets its own FP32 where that is",
        f"another than the first line's, and {UNKNOWN} where it is another that the source does not state.",
        "",
    ]
    lines += CAVEATS.splitlines()
    usual = table.groupby("model")["fp32"].agg(lambda values: values.mode().iloc[0])
    for bits, rows in table.fillna({"note": ""}).groupby("bits", sort=False):
        there = [model for model in MODELS if (rows["model"] == model).any()]
        body = [[FLOATING, *(f"{usual[model]:.2f}" for model in there), NOTHING, NOTHING]]
        for (method, source), own in rows.groupby(["method", "source"], sort=False):
            figures = own.set_index("model")
            cells = [_cell(figures, model, float(usual[model])) for model in there]
            body.append([str(method), *cells, str(source), _notes(own)])
        text = [True, *[False] * len(there), True, True]
        header = ["Method", *there, "Source", "Note"]
        lines += ["", f"## {str(bits).upper()}", "", *aligned_table(header, body, text)]
    checkpoints = table[table["checkpoint"].notna()].drop_duplicates(["model", "fp32", "checkpoint"])
    known = [[row.model, f"{row.fp32:.2f}", f"`{row.checkpoint}`"] for row in checkpoints.itertuples()]
    lines += ["", "## Checkpoints that the sources name", ""]
    lines += aligned_table(["Model", "FP32 top-1 (%)", "Checkpoint"], known, [True, False, True])
    return "\n".join(lines) + "\n"


def _cell(figures: pd.DataFrame, model: str, usual: float) -> str:
    if model not in figures.index:
        return NOTHING
    top1, own = figures.loc[model, ["top1", "fp32"]]
    mark = f" {UNKNOWN}" if pd.isna(own) else "" if own == usual else f" ({own:.2f})"
    return f"{top1:.2f}{mark}"


def _notes(rows: pd.DataFrame) -> str:
    """What the notes of a row's figures say, each once; after the models' names where not all say so."""
    of: dict[str, list[str]] = {}
    for model, note in zip(rows["model"], rows["note"], strict=True):
        for part in note.split("; ") if note else []:
            of.setdefault(part, []).append(model)
    said = [part if len(names) == len(rows) else f"{', '.join(names)}: {part}" for part, names in of.items()]
    return "; ".join(said) or NOTHING
