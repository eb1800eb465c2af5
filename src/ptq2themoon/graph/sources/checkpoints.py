"""Weights from a local checkpoint into a timm model; what does not fit is said in one line."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq2themoon.graph.sources.checkpoint_files import State, plain_text, states_in
from ptq2themoon.graph.sources.misfits import TABLES, classifiers, other_keys, other_shapes
from ptq2themoon.progress import warn
from ptq2themoon.vocabulary.errors import UserError

WRAPPERS = ("state_dict_ema", "model", "state_dict")  # of training scripts, such as timm's
AVERAGED = re.compile(
    r"(?<![a-z])(?:ema|swa|averag\w*)(?![a-z])", re.IGNORECASE
)  # in a name: these weights come first
# What torch.compile, FSDP and checkpointing put between names, at any place.
BETWEEN = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
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
            beside = _beside(found, state)
            raise UserError(f"{path}: {other_keys(state, wanted, heads, beside)}{hint}")
    else:
        state = _chosen(whole, wanted, path)
    wrong = [key for key, value in wanted.items() if key in state and value.shape != state[key].shape]
    if wrong:
        raise UserError(f"{path}: {other_shapes(model, state, wanted, wrong)}")
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


def _beside(found: Mapping[str, State], state: State) -> list[str]:
    """Names of weights in the file that are no part of `state`, whatever stands before its names."""
    names = {BETWEEN.sub("", key) for whole in found.values() for key in whole}
    return [key for key in names if key.endswith("weight") and not key.endswith(tuple(state))]


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


def first_line(error: BaseException) -> str:
    """Kind and first line of a message that may have none; of PyTorch's list of keys, the start."""
    lines = plain_text(error).splitlines()
    text = " ".join(" ".join(lines[: 3 if "state_dict" in lines[0] else 1]).split())
    return (text if len(text) <= 300 else f"{text[:299]}…").removesuffix(":")
