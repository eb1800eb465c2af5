"""Train the embedded demo model: a DeiT-Tiny-shaped timm VisionTransformer on Fashion-MNIST.

Not part of the default run. Reads the four IDX files of Fashion-MNIST (Debian package
`dataset-fashion-mnist`, or the `raw` folder that torchvision downloads), writes into --out:

    model/config.json, model/model.safetensors   float16 weights; load with timm "local-dir:"
    training.csv, training.png                   one row an epoch, and its curve
    card.json                                    data, recipe, seed, date, top-1 on all test images

Resumable: after each epoch the whole state goes to --state; the same command goes on from there.
README.md tells how the embedded model was made.

    python resources/demo/train.py --data /usr/share/datasets/fashion-mnist --out resources/demo
"""

from __future__ import annotations

import argparse
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import timm
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ptq2themoon.data.idx import read_idx
from ptq2themoon.device import resolve_device
from ptq2themoon.plots import style
from ptq2themoon.stage import run
from ptq2themoon.vocabulary.records import write_json

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 28, "patch_size": 4, "in_chans": 1}
CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images
PRETRAINED_CFG = {
    "input_size": [1, 28, 28],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": [MEAN],
    "std": [STD],
    "num_classes": 10,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "label_names": CLASSES,
}


def load_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Normalised images [N, 1, 28, 28] (float32) and labels [N] (int64)."""
    images = torch.from_numpy(read_idx(folder, f"{split}-images-idx3-ubyte")).float().div_(255)
    labels = torch.from_numpy(read_idx(folder, f"{split}-labels-idx1-ubyte")).long()
    return images.sub_(MEAN).div_(STD).unsqueeze(1), labels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flip and a shift of up to two pixels, each image on its own."""
    n = len(images)
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    windows = padded.unfold(2, 28, 1).unfold(3, 28, 1)  # [n, 1, 5, 5, 28, 28]
    dy, dx = torch.randint(0, 5, (2, n), generator=generator)
    return windows[torch.arange(n), :, dy, dx].contiguous()


def make_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (fewer epochs to the same accuracy), AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks.")]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.05, betas=(0.9, 0.98)),
    ]


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Top-1 accuracy in percent, in float32."""
    model.eval()
    correct = sum(
        int((model(x.to(device)).argmax(1).cpu() == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * correct / len(labels)


def train_epoch(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    data: tuple[Tensor, Tensor],
    epoch: int,
    args: argparse.Namespace,
    device: torch.device,
) -> float:
    """One pass over the training images; returns the mean loss."""
    images, labels = data
    # A generator of its own for every epoch makes a resumed run equal to an uninterrupted one.
    generator = torch.Generator().manual_seed(args.seed * 1000 + epoch)
    torch.manual_seed(args.seed * 1000 + epoch)
    batches = torch.randperm(len(labels), generator=generator).split(args.batch_size)
    per_epoch, total = len(batches), 0.0
    model.train()
    # Dropping half of the patches in the early epochs halves their cost.
    keep_all = epoch >= args.patch_drop_epochs
    model.patch_drop.prob = 0.0 if keep_all else 0.5
    forward = torch.compile(model) if args.compile else model
    progress = tqdm(batches, desc=f"epoch {epoch + 1}", mininterval=5)
    for i, index in enumerate(progress):
        factor = lr_factor(epoch * per_epoch + i, args.epochs * per_epoch, per_epoch // 2)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
        x = augment(images[index], generator).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(forward(x), labels[index].to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total += float(loss.detach()) * len(index)
        progress.set_postfix(loss=f"{total / min((i + 1) * args.batch_size, len(labels)):.3f}", refresh=False)
    return total / len(labels)


def save_state(path: Path, model: nn.Module, optimizers: list, log: list[dict]) -> None:
    """All that a run needs to go on, in place of the last one as a whole."""
    temporary = path.with_suffix(".tmp")
    states = [o.state_dict() for o in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "log": log}, temporary)
    os.replace(temporary, path)


def load_state(path: Path, model: nn.Module, optimizers: list) -> list[dict]:
    """Restore a run; returns its log (one entry an epoch done), empty for a new run."""
    if not path.exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["log"]


def plot_log(log: pd.DataFrame, patch_drop_epochs: int, path: Path) -> None:
    """Loss and top-1 by epoch; a line ends the epochs on half of the patches."""
    with style.context():
        figure = Figure(figsize=(8, 3), layout="constrained")
        panels = [("train_loss", "training loss"), ("test_top1", "top-1, first 2,000 test images (%)")]
        for axes, (column, label) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.plot(log["epoch"], log[column], marker="o", color=style.COLOURS[0])
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
            axes.grid(axis="y")
            if 0 < patch_drop_epochs < len(log):
                axes.axvline(patch_drop_epochs + 0.5, color=style.LIGHT_GREY, linestyle=":")
                where, at = (patch_drop_epochs + 0.4, 0.5), ("data", "axes fraction")
                axes.annotate("half of the patches", where, xycoords=at, ha="right", color=style.GREY)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def export(model: nn.Module, log: list[dict], patch_drop_epochs: int, out: Path) -> None:
    """Weights as float16 (rounded in place, so that the reported top-1 is the file's), log and curve."""
    (out / "model").mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    save_file(weights, out / "model" / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 10,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": PRETRAINED_CFG,
    }
    write_json(out / "model" / "config.json", config)
    table = pd.DataFrame(log)
    table.to_csv(out / "training.csv", index=False)
    plot_log(table, patch_drop_epochs, out / "training.png")


def write_card(args: argparse.Namespace, test_top1: float, seconds: float, device: torch.device) -> None:
    card = {
        "model": f"timm {ARCHITECTURE} with {MODEL_ARGS}",
        "data": "Fashion-MNIST, 60,000 training images",
        "test_images": 10000,
        "test_top1": test_top1,
        "epochs": args.epochs,
        "epochs_with_half_of_the_patches": args.patch_drop_epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "optimizer": "Muon (matrices of the blocks) and AdamW (the rest), weight decay 0.05",
        "augmentation": "horizontal flip, shift of up to 2 pixels",
        "seed": args.seed,
        "device": device.type,
        "training_seconds": round(seconds),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    write_json(args.out / "card.json", card)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--state", type=Path, default=Path("train_state.pt"), help="resume file")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patch-drop-epochs", type=int, default=8, help="epochs on half the patches")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, not bit-equal")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = torch.device(resolve_device(args.device))
    torch.manual_seed(args.seed)
    model = timm.create_model(ARCHITECTURE, num_classes=10, patch_drop_rate=0.5, **MODEL_ARGS).to(device)
    optimizers = make_optimizers(model, args.lr)
    log = load_state(args.state, model, optimizers)
    train, test = load_split(args.data, "train"), load_split(args.data, "t10k")
    for epoch in range(len(log), args.epochs):
        start = time.monotonic()
        loss = train_epoch(model, optimizers, train, epoch, args, device)
        accuracy = top1(model, test[0][:2000], test[1][:2000], device)
        seconds = time.monotonic() - start
        row = {"epoch": epoch + 1, "train_loss": loss, "test_top1": accuracy, "seconds": seconds}
        log.append(row)
        save_state(args.state, model, optimizers, log)
        print({k: round(v, 4) for k, v in row.items()}, flush=True)
    export(model, log, args.patch_drop_epochs, args.out)
    final = top1(model, *test, device)
    write_card(args, final, sum(row["seconds"] for row in log), device)
    print(f"top-1 on all 10,000 test images: {final:.2f} %")


if __name__ == "__main__":
    run(main)
