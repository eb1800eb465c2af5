"""Weights from a local checkpoint into a timm model; what does not fit is said in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ptq2themoon.vocabulary.errors import UserError

WRAPPERS = ("state_dict_ema", "model", "state_dict")  # of training scripts; averaged weights first
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, of torch.compile
BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|layers?)\.\d+(?=\.)")

State = Mapping[str, Tensor]


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a timm model from a file; the classifier of a file is left out where the model has none.

    Raises:
        UserError: a file that is not readable, or weights that do not fit the model.
    """
    state, wanted, heads = read_state(path), model.state_dict(), classifiers(model)
    if getattr(model, "num_classes", None) == 0:
        state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    if set(state) != set(wanted):
        raise UserError(f"{path}: {_other_keys(state, wanted, heads)}")
    wrong = [key for key, value in wanted.items() if value.shape != state[key].shape]
    if wrong:
        raise UserError(f"{path}: {_other_shapes(model, state, wanted, wrong)}")
    model.load_state_dict(state)


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that give the logits, as timm states them; of distilled models two."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def read_state(path: Path) -> State:
    """Weights from safetensors or a state dict; never any code from the file."""
    if not path.is_file():
        raise UserError(f"{path}: not found; `checkpoint` names a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return _without_prefixes(load_file(path))
        # Training scripts keep their options beside the weights: names and values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({first_line(error)})") from None
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not state or not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: holds no state dict, bare or under {', '.join(WRAPPERS)}")
    return _without_prefixes(state)


def _without_prefixes(state: State) -> State:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _other_keys(state: State, wanted: State, heads: Collection[str]) -> str:
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if not unexpected and {key.rpartition(".")[0] for key in missing} <= set(heads):
        return f"has no classifier ({', '.join(missing)}); give `arguments: {{num_classes: 0}}` for features"
    hint = f"; the file has {outline(state)}, the model {outline(wanted)}"
    if any(".attention." in key or key.startswith(("embeddings.", "encoder.")) for key in unexpected):
        hint = "; they are named as transformers does it: export that model, give `source: onnx:FILE`"
    return (
        f"weights of another architecture: {len(missing)} keys missing (as {missing[:2]}), "
        f"{len(unexpected)} unexpected (as {unexpected[:2]}){hint}"
    )


def _other_shapes(model: nn.Module, state: State, wanted: State, wrong: list[str]) -> str:
    heads = classifiers(model)
    if all(key.rpartition(".")[0] in heads for key in wrong):
        found, asked = state[wrong[0]].shape[0], wanted[wrong[0]].shape[0]
        return (
            f"its head {heads[0]!r} has {found} classes, the model {asked}; "
            f"give `arguments: {{num_classes: {found}}}`"
        )
    if wrong == ["pos_embed"]:
        return _other_size(model, state["pos_embed"].shape[1], wanted["pos_embed"].shape[1])
    first = wrong[0]
    return (
        f"weights of another architecture: {len(wrong)} of {len(wanted)} have another shape (as {first}: "
        f"{list(state[first].shape)}, expected {list(wanted[first].shape)}); "
        f"the file has {outline(state)}, the model {outline(wanted)}"
    )


def _other_size(model: nn.Module, found: int, asked: int) -> str:
    """Position embeddings of another number of tokens: the sizes of image that both are for."""
    embed = getattr(model, "patch_embed", None)
    patch, here = getattr(embed, "patch_size", (0, 0)), getattr(embed, "img_size", None)
    grid = getattr(embed, "grid_size", (0, 0))
    side = round(max(found - (asked - grid[0] * grid[1]), 0) ** 0.5)
    text = f"its position embedding pos_embed has {found} tokens, the model {asked}"
    if here is None or side * side != found - (asked - grid[0] * grid[1]):
        return f"{text}; give the image size that it was trained on as `arguments: {{img_size: N}}`"
    size = side * patch[0]
    return (
        f"{text}: the file is for images of {size}x{side * patch[1]}, the model for {here[0]}x{here[1]}; "
        f"give `arguments: {{img_size: {size}}}`"
    )


def outline(state: State) -> str:
    """`12 blocks of width 192`: what tells architectures apart at a glance."""
    blocks = {match[0] for match in map(BLOCK.match, state) if match}
    nested = {name for name in blocks if any(other.startswith(f"{name}.") for other in blocks)}
    widths = sorted({value.shape[0] for key, value in state.items() if re.search(r"norm1?\.weight$", key)})
    width = f" of width {' to '.join(map(str, dict.fromkeys([widths[0], widths[-1]])))}" if widths else ""
    return f"{len(blocks - nested)} blocks{width}"


def first_line(error: BaseException) -> str:
    """Kind and first line of a message that may have none; of PyTorch's list of keys, the start."""
    lines = f"{type(error).__name__}: {str(error).strip()}".splitlines()
    text = " ".join(" ".join(lines[: 3 if "state_dict" in lines[0] else 1]).split())
    return (text if len(text) <= 300 else f"{text[:299]}…").removesuffix(":")
