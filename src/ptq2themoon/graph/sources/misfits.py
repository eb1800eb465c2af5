"""Why weights do not fit a model, in one line, with what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

State = Mapping[str, Tensor]

# Tables and counts that a model makes itself, which other versions of it saved.
TABLES = re.compile(
    r"(?:^|\.)(?:relative_position_index|relative_coords_table|attn_mask|mask_token|position_ids|n_averaged"
    r"|num_batches_tracked|total_ops|total_params|inv_freq|freqs_\w+|(?:rope|rotary_emb|rot_pos_emb)\.\w+)$"
)
BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|layers?)\.\d+(?=\.)")
# What a name that the model does not have tells of a file; the first that is found is said.
TELLTALES = {
    r"(^|\.)lora_\w+": "adapters of LoRA lie beside its weights; merge them first (merge_and_unload of PEFT)",
    r"\.base_layer\.|\.modules_to_save\.": "PEFT has wrapped it; unload it first (merge_and_unload)",
    r"_mask$": "masks prune its weights; make that permanent first (torch.nn.utils.prune.remove)",
    r"\.parametrizations\.|\.weight_[gv]$": "its weights are parametrized; remove the parametrizations first",
    r"fake_quant|activation_post_process|_packed_params|\.SCB$|absmax$|qweight$|zero_point$|weight_scale$": (
        "it is of a model that was quantized; give the weights in floating point"
    ),
    r"_flat_param$": "FSDP has joined its weights; gather the full state dict first",
    r"^(head_dist\.|dist_token$)": "it is distilled, with two heads; give a `source` that is distilled too",
    r"^decoder_": "it is of pre-training with a decoder; give the weights of encoder and classifier alone",
    r"^fc_norm\.": "its last norm follows a pool; give `arguments: {global_pool: avg}`",
    r"^reg_token$": "it has register tokens; give their number as `arguments: {reg_tokens: N}`",
    r"\.ls\d\.gamma$": "it has LayerScale; give `arguments: {init_values: 1e-5}`",
    r"^(class_token|conv_proj\.)": "it is torchvision's; export that model, give `source: onnx:FILE`",
}


def telltale(names: Collection[str]) -> str | None:
    """What one of these names tells of the file that has it."""
    return next(
        (why for what, why in TELLTALES.items() if any(re.search(what, name) for name in names)), None
    )


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that give the logits, as timm states them; of distilled models two."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def other_keys(state: State, wanted: State, heads: Collection[str], beside: Collection[str]) -> str:
    """What to say where names differ.

    Args:
        beside: names of other weights in the file.
    """
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    unexpected = [key for key in unexpected if not TABLES.search(key)]
    if why := telltale(unexpected):
        return f"weights of another form (as {unexpected[:2]}): {why}"
    if not unexpected and {key.rpartition(".")[0] for key in missing} <= set(heads):
        other = f", but {', '.join(sorted(beside)[:2])}, which is no part of the model" if beside else ""
        names = ", ".join(missing)
        return f"has no classifier ({names}){other}; give `arguments: {{num_classes: 0}}` for features"
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


def other_shapes(model: nn.Module, state: State, wanted: State, wrong: list[str]) -> str:
    """What to say where shapes differ."""
    heads = classifiers(model)
    if not any(state[key].numel() for key in wrong):
        return (
            "holds empty tensors, as DeepSpeed's ZeRO 3 leaves them; gather the weights with the script "
            "zero_to_fp32.py that lies beside"
        )
    if all(key.rpartition(".")[0] in heads and state[key].ndim == wanted[key].ndim for key in wrong):
        found, asked = state[wrong[0]].shape[0], wanted[wrong[0]].shape[0]
        return (
            f"its head {heads[0]!r} has {found} classes, the model {asked}; "
            f"give `arguments: {{num_classes: {found}}}`, or `--classes {found}` to `ptq2themoon`"
        )
    if wrong == ["patch_embed.proj.weight"]:
        theirs, own = (list(each["patch_embed.proj.weight"].shape) for each in (state, wanted))
        names = {1: "in_chans", 2: "patch_size"} if len(theirs) == len(own) == 4 else {}
        given = ", ".join(f"{name}: {theirs[i]}" for i, name in names.items() if theirs[i] != own[i])
        hint = f"; give `arguments: {{{given}}}`" if given else ""
        return f"its patch embedding is {theirs}, the model's {own}{hint}"
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
