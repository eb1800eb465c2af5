"""Weights from a local checkpoint into a timm model; what does not fit is said in one line."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq2themoon.graph.sources.checkpoint_files import State, plain_text, states_in
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError

WRAPPERS = ("state_dict_ema", "model", "state_dict")  # of training scripts, such as timm's
AVERAGED = re.compile(
    r"(?<![a-z])(?:ema|swa|averag\w*)(?![a-z])", re.IGNORECASE
)  # in a name: these weights come first
# What torch.compile, FSDP and checkpointing put between names, at any place.
BETWEEN = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Tables and counts that a model makes itself, which other versions of it saved.
TABLES = re.compile(
    r"(?:^|\.)(?:relative_position_index|relative_coords_table|attn_mask|mask_token|position_ids|n_averaged"
    r"|num_batches_tracked|total_ops|total_params|inv_freq|freqs_\w+|(?:rope|rotary_emb|rot_pos_emb)\.\w+)$"
)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|layers?)\.\d+(?=\.)")
# What a converter of timm raises on weights of another architecture.
FOREIGN = (KeyError, RuntimeError, ValueError, IndexError, AttributeError, TypeError, AssertionError)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a timm model from a file, whatever stands before the names of its weights.

    The classifier of a file is left out where the model has none. Weights by the names of older versions, or
    of the code that a model comes from, are brought to timm's by its own converter, where all are there.

    Raises:
        UserError: a file that is not readable, or weights that do not fit the model.
    """
    found = states_in(path)
    if not found:
        raise UserError(f"{path}: holds no state dict, bare or under {', '.join(WRAPPERS)}")
    wanted, heads = model.state_dict(), classifiers(model)
    named = _by_place(found, wanted)
    whole = {place: state for place, state in named.items() if not any(_differences(model, state))}
    if not whole:
        state = _most_alike(named, wanted)
        state = _converted(model, state, path) or state
        if any(_differences(model, state)):
            hint = "; it is one of several files: give the index beside it" if SHARD.search(path.name) else ""
            raise UserError(f"{path}: {_other_keys(state, wanted, heads)}{hint}")
    else:
        state = _chosen(whole, wanted, path)
    wrong = [key for key, value in wanted.items() if key in state and value.shape != state[key].shape]
    if wrong:
        raise UserError(f"{path}: {_other_shapes(model, state, wanted, wrong)}")
    odd = [key for key, value in wanted.items() if key in state and not _is_number(value, state[key])]
    if odd:
        first = state[odd[0]]
        kind = f"{str(first.dtype).removeprefix('torch.')} ({first.layout}, {first.device})"
        raise UserError(
            f"{path}: {odd[0]} is of {kind}, as of a quantized or unfinished model; "
            "give its weights in floating point"
        )
    _compare_tables(model, state, path)
    model.load_state_dict({key: state.get(key, value) for key, value in wanted.items()})


def _by_place(found: Mapping[str, State], wanted: State) -> dict[str, State]:
    """Weights by what stands before their names: wherever names of the model are found, or as they are."""
    named: dict[str, State] = {}
    for where, state in found.items():
        plain = {BETWEEN.sub("", key): value for key, value in state.items()}
        alike = Counter(
            key[:place]
            for key in plain
            for place in (0, *(dot.end() for dot in re.finditer(r"\.", key)))
            if key[place:] in wanted
        )
        for prefix in [prefix for prefix, count in alike.items() if 2 * count >= len(wanted)] or [""]:
            inside = {key[len(prefix) :]: value for key, value in plain.items() if key.startswith(prefix)}
            named[f"{where}{prefix}"] = inside
    return named


def _most_alike(named: Mapping[str, State], wanted: State) -> State:
    return max(named.values(), key=lambda state: (len(state.keys() & wanted.keys()), len(state)))


def _differences(model: nn.Module, state: State) -> tuple[list[str], list[str]]:
    """(missing, unexpected) names; not those of tables that a model makes, nor of a head that it has not."""
    wanted, heads = model.state_dict(), classifiers(model)
    headless = getattr(model, "num_classes", None) == 0
    made = {name for name, _ in model.named_buffers()}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [
        key
        for key in state
        if key not in wanted
        and key not in made
        and not TABLES.search(key)
        and not (headless and key.rpartition(".")[0] in heads)
    ]
    return missing, unexpected


def _chosen(whole: Mapping[str, State], wanted: State, path: Path) -> State:
    """The one state dict of several: averaged weights first; others must not differ."""
    averaged = {place: state for place, state in whole.items() if AVERAGED.search(place)}
    left = averaged or whole
    first, *others = left.values()
    for other in others:
        if any(not torch.equal(first[key], other[key]) for key in wanted if key in first and key in other):
            places = ", ".join(repr(place.rstrip(".")) for place in left)
            raise UserError(f"{path}: holds weights that differ, under {places}; save one state dict alone")
    return first


def _is_number(own: Tensor, theirs: Tensor) -> bool:
    """Whether a tensor holds plain numbers that can stand for the model's own."""
    plain = theirs.layout == torch.strided and not theirs.is_meta and not theirs.is_quantized
    return plain and (theirs.is_floating_point() or not own.is_floating_point())


def _converted(model: nn.Module, state: State, path: Path) -> State | None:
    """Weights by timm's names; None where timm knows no others.

    Raises:
        UserError: timm would resize or merge weights, which nobody asked for.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        found: dict[str, Tensor] = dict(convert(dict(state), model))
    except FOREIGN:
        return None
    if any(_differences(model, found)):
        return None
    if _size(found) != _size(state) and not _joins_class_token(state, found):
        changed = [key for key in found if key in state and found[key].shape != state[key].shape]
        what = "their number"
        if changed:
            key = changed[0]
            what = f"{key} from {list(state[key].shape)} to {list(found[key].shape)}"
        raise UserError(
            f"{path}: names of other code, by which timm would resize or merge weights ({what}); give the "
            "sizes of its training as `arguments`, or convert it with timm and save model.state_dict()"
        )
    return found


def _joins_class_token(state: State, found: State) -> bool:
    """Whether the class token alone took up its row of the position embedding, as DINOv2's with registers.

    The sum of the two is all that the model reads.
    """
    position, token = state.get("pos_embed"), state.get("cls_token")
    joined, rest = found.get("cls_token"), found.get("pos_embed")
    if position is None or token is None or joined is None or rest is None or position.ndim != 3:
        return False
    same = torch.equal(rest, position[:, 1:]) and torch.equal(joined, token + position[:, :1])
    return same and _size(found) == _size(state) - position.shape[-1]


def _size(state: State) -> int:
    return sum(value.numel() for key, value in state.items() if not TABLES.search(key))


def _compare_tables(model: nn.Module, state: State, path: Path) -> None:
    """Warn of a table of numbers in a file that the model makes otherwise, such as a rotary embedding."""
    for name, own in model.named_buffers():
        theirs = state.get(name)
        if theirs is None or theirs.shape != own.shape or not own.is_floating_point() or "mask" in name:
            continue
        if name not in model.state_dict() and not torch.allclose(theirs.float(), own.float(), atol=1e-4):
            warn(f"{path}: its table {name} is not the one that the model makes; check `arguments`")


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that give the logits, as timm states them; of distilled models two."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _other_keys(state: State, wanted: State, heads: Collection[str]) -> str:
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    unexpected = [key for key in unexpected if not TABLES.search(key)]
    if not unexpected and {key.rpartition(".")[0] for key in missing} <= set(heads):
        return f"has no classifier ({', '.join(missing)}); give `arguments: {{num_classes: 0}}` for features"
    theirs, own = outline(state), outline(wanted)
    hint = f"; the file has {theirs}, the model {own}"
    if theirs == own:
        hint = "; its blocks are like the model's: named otherwise, or made with other `arguments`"
    if any(".attention." in key or key.startswith(("embeddings.", "encoder.")) for key in unexpected):
        hint = "; they are named as transformers does it: export that model, give `source: onnx:FILE`"
    return (
        f"weights of another architecture: {len(missing)} keys missing (as {missing[:2]}), "
        f"{len(unexpected)} unexpected (as {unexpected[:2]}){hint}"
    )


def _other_shapes(model: nn.Module, state: State, wanted: State, wrong: list[str]) -> str:
    heads = classifiers(model)
    if not any(state[key].numel() for key in wrong):
        return (
            "holds empty tensors, as DeepSpeed's ZeRO 3 leaves them; gather the weights with the script "
            "zero_to_fp32.py that lies beside"
        )
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
    lines = plain_text(error).splitlines()
    text = " ".join(" ".join(lines[: 3 if "state_dict" in lines[0] else 1]).split())
    return (text if len(text) <= 300 else f"{text[:299]}…").removesuffix(":")
