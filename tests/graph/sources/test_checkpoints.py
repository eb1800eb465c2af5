"""Weights under whatever names and in whatever files: all that are there are read, the rest is told why."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import randomised
from torch import nn

from ptq2themoon.graph.sources.checkpoint_files import plain_text, states_in
from ptq2themoon.graph.sources.checkpoints import load_weights
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import Source

VIT = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "num_classes": 3}
SWIN = "swin_tiny_patch4_window7_224"
SWIN_TINY: dict[str, Any] = {
    "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 24,
    "window_size": 4, "img_size": 64, "num_classes": 3,
}  # fmt: skip

State = dict[str, Any]


def made(name: str = VIT, arguments: dict[str, Any] = TINY, **changes: Any) -> nn.Module:
    return timm.create_model(name, **{**arguments, **changes})


def read(path: Path, state: State, **model: Any) -> None:
    """A model filled from a file has the weights of `state`."""
    fresh = made(**model)
    load_weights(fresh, path)
    found = fresh.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in found)


def refusal(path: Path, **model: Any) -> str:
    with pytest.raises(UserError) as error:
        load_weights(made(**model), path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "\x1b" not in message
    assert "weights_only" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def state() -> State:
    return randomised(made()).state_dict()


@pytest.fixture(scope="module")
def swin() -> State:
    return randomised(made(SWIN, SWIN_TINY)).state_dict()


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def zeros(state: State) -> State:
    return {key: value * 0 for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    **{prefix: prefixed(prefix) for prefix in (
        "module.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone.",
        "model.module.net.", "module.backbone._orig_mod.", "_fsdp_wrapped_module.", "encoder.vit.", "a b.")},
    "compiled blocks": lambda s: {key.replace("blocks.0.", "blocks.0._orig_mod."): v for key, v in s.items()},
    "wrapped blocks": lambda s: {
        f"module.{key.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.')}": v
        for key, v in s.items()},
    "Lightning": lambda s: {"epoch": 3, "loops": {}, "hyper_parameters": {"lr": 0.1},
                            "state_dict": {**prefixed("model.")(s), "criterion.weight": torch.ones(3)}},
    "averages beside": lambda s: {"state_dict": {**prefixed("model.")(zeros(s)), **prefixed("ema.")(s)}},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "1", "param_shapes": [{"a": torch.Size([1])}]},
    "averaged": lambda s: {**prefixed("module.")(s), "n_averaged": torch.tensor(5)},
    "teacher alone": lambda s: {"teacher": prefixed("backbone.")(s), "epoch": 1},
    "twice the same": lambda s: {"model": s, "copy": dict(s)},
    "deep": lambda s: {"trainer": {"model": {"weights": s}}},
    "beside others": lambda s: {**s, "epoch": 3, "best": 0.5, "name": "x"},
    "optimizer": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_weights_are_there(tmp_path: Path, state: State, form: str) -> None:
    torch.save(FORMS[form](state), tmp_path / "w.pth")
    read(tmp_path / "w.pth", state)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors"])
def test_safetensors_by_any_name(tmp_path: Path, state: State, name: str) -> None:
    save_file(prefixed("_orig_mod.")(state), tmp_path / name)
    read(tmp_path / name, state)


def test_a_file_of_pytorch_by_the_name_of_safetensors(tmp_path: Path, state: State) -> None:
    torch.save({"model": state}, tmp_path / "w.safetensors")
    read(tmp_path / "w.safetensors", state)


OF_ANOTHER_FORM: dict[str, tuple[Callable[[State], State], str]] = {
    "LoRA": (
        lambda s: {**s, "blocks.0.attn.qkv.lora_A": torch.ones(2, 32)},
        "weights of another form (as ['blocks.0.attn.qkv.lora_A']): adapters of LoRA lie beside its weights",
    ),
    "PEFT": (
        lambda s: {key.replace("head.", "head.modules_to_save.default."): v for key, v in s.items()},
        "PEFT has wrapped it; unload it first",
    ),
    "pruned": (
        lambda s: (
            {key.replace("fc1.weight", "fc1.weight_orig"): v for key, v in s.items()}
            | {"blocks.0.mlp.fc1.weight_mask": torch.ones(1)}
        ),
        "masks prune its weights; make that permanent first",
    ),
    "weight norm": (
        lambda s: {
            key.replace("head.weight", "head.parametrizations.weight.original1"): v for key, v in s.items()
        },
        "remove the parametrizations first",
    ),
    "trained for quantization": (
        lambda s: {**s, "blocks.0.attn.qkv.weight_fake_quant.scale": torch.ones(1)},
        "it is of a model that was quantized; give the weights in floating point",
    ),
    "distilled": (
        lambda s: {**s, "dist_token": torch.ones(1, 1, 32)},
        "give a `source` that is distilled too",
    ),
    "MAE": (
        lambda s: {**s, "decoder_embed.weight": torch.ones(2, 32)},
        "it is of pre-training with a decoder",
    ),
    "last norm after a pool": (
        lambda s: {f"fc_{key}" if key.startswith("norm.") else key: v for key, v in s.items()},
        "give `arguments: {global_pool: avg}`",
    ),
    "grey images": (
        lambda s: {**s, "patch_embed.proj.weight": s["patch_embed.proj.weight"][:, :1]},
        "is [32, 1, 16, 16], the model's [32, 3, 16, 16]; give `arguments: {in_chans: 1}`",
    ),
    "another head beside": (
        lambda s: (
            {f"net.{key}": v for key, v in s.items() if "head" not in key} | {"fc.weight": torch.ones(3, 32)}
        ),
        "has no classifier (head.bias, head.weight), but fc.weight, which is no part of the model",
    ),
}


@pytest.mark.parametrize("form", OF_ANOTHER_FORM)
def test_the_true_reason(tmp_path: Path, state: State, form: str) -> None:
    change, said = OF_ANOTHER_FORM[form]
    torch.save(change(state), tmp_path / "w.pth")
    assert said in refusal(tmp_path / "w.pth")


def test_two_that_differ(tmp_path: Path, state: State) -> None:
    torch.save({"student": prefixed("backbone.")(zeros(state)), "teacher": state}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert message == (
        "holds weights that differ, under 'student.backbone', 'teacher'; save one state dict alone"
    )


def test_more_blocks_than_the_model_has(tmp_path: Path) -> None:
    """All weights are there, and others too: another architecture, whatever stands before."""
    deeper = randomised(made(depth=3)).state_dict()
    for prefix in ("", "model."):
        torch.save(prefixed(prefix)(deeper), tmp_path / "w.pth")
        message = refusal(tmp_path / "w.pth")
        assert message.startswith("weights of another architecture: 0 keys missing (as []), 12 unexpected")


def test_no_head_where_the_model_has_none(tmp_path: Path, state: State) -> None:
    torch.save(prefixed("model.")(state), tmp_path / "w.pth")
    read(tmp_path / "w.pth", state, num_classes=0)


# Tables and older names ------------------------------------------------------------------------------

BLOCKS = [f"layers.{stage}.blocks.{block}.attn." for stage in range(2) for block in range(2)]
TABLES: State = {
    **{f"{block}relative_position_index": torch.zeros(16, 16, dtype=torch.long) for block in BLOCKS},
    **{f"{block}relative_coords_table": torch.zeros(1, 7, 7, 2) for block in BLOCKS},
    "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
    "n_averaged": torch.tensor(1),
    "layers.0.total_ops": torch.zeros(1),
}


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_tables_are_no_weights(tmp_path: Path, swin: State, prefix: str) -> None:
    torch.save({"model": prefixed(prefix)({**swin, **TABLES})}, tmp_path / "w.pth")
    read(tmp_path / "w.pth", swin, name=SWIN, arguments=SWIN_TINY)


def old(state: State) -> State:
    """By the names of timm 0.6 and of Microsoft's own code."""
    renamed = {key.replace("layers.1.downsample", "layers.0.downsample"): v for key, v in state.items()}
    return {key.replace("head.fc.", "head."): value for key, value in renamed.items()}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.module."])
@pytest.mark.parametrize("more", [{}, TABLES], ids=["", "tables"])
def test_an_older_layout(tmp_path: Path, swin: State, prefix: str, more: State) -> None:
    torch.save({"state_dict": prefixed(prefix)({**old(swin), **more})}, tmp_path / "w.pth")
    read(tmp_path / "w.pth", swin, name=SWIN, arguments=SWIN_TINY)


REGISTERS: dict[str, Any] = {**TINY, "patch_size": 14, "img_size": 56}


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_original_dinov2(tmp_path: Path, name: str) -> None:
    """With registers, timm's class token is the sum of the original's and of its row of positions."""
    own = randomised(made(name, REGISTERS)).state_dict()
    original = {**own, "mask_token": torch.zeros(1, own["cls_token"].shape[-1])}
    if "reg_token" in own:
        place = torch.randn(1, 1, own["cls_token"].shape[-1], generator=torch.Generator().manual_seed(0))
        original["register_tokens"] = original.pop("reg_token")
        original["pos_embed"] = torch.cat([place, own["pos_embed"]], dim=1)
        original["cls_token"] = own["cls_token"] - place
        own = {**own, "cls_token": original["cls_token"] + place}
    torch.save(original, tmp_path / "w.pth")
    read(tmp_path / "w.pth", own, name=name, arguments=REGISTERS)


def test_no_weight_is_resized_in_silence(tmp_path: Path) -> None:
    other = old(randomised(made(SWIN, SWIN_TINY, window_size=8)).state_dict())
    torch.save(other, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", name=SWIN, arguments=SWIN_TINY)
    assert "names of other code, by which timm would resize or merge weights (" in message
    assert "relative_position_bias_table from [225, " in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight.to(torch.int8), "head.weight is of int8 (torch.strided, cpu)"),
        (lambda weight: weight.to_sparse(), "head.weight is of float32 (torch.sparse_coo, cpu)"),
        (lambda weight: weight.to("meta"), "head.weight is of float32 (torch.strided, meta)"),
        (lambda weight: weight.to(torch.complex64), "head.weight is of complex64"),
    ],
)
def test_weights_that_are_no_plain_numbers(
    tmp_path: Path, state: State, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    torch.save({**state, "head.weight": change(state["head.weight"])}, tmp_path / "w.pth")
    assert said in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, state: State, kind: torch.dtype) -> None:
    torch.save({key: value.to(kind) for key, value in state.items()}, tmp_path / "w.pth")
    read(tmp_path / "w.pth", {key: value.to(kind).float() for key, value in state.items()})


def test_a_rotary_table_of_other_arguments(
    tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    model = made()
    model.register_buffer("rope_freqs", torch.ones(4), persistent=False)
    torch.save({**state, "rope_freqs": torch.zeros(4)}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert "its table rope_freqs is not the one that the model makes" in capsys.readouterr().err


# Several files ---------------------------------------------------------------------------------------


def write_shards(folder: Path, state: State) -> Path:
    files = {}
    for part, keys in enumerate((sorted(state)[:16], sorted(state)[16:]), 1):
        name = f"model-0000{part}-of-00002.safetensors"
        save_file({key: state[key].contiguous() for key in keys}, folder / name)
        files |= dict.fromkeys(keys, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_shards_beside_their_index(tmp_path: Path, state: State) -> None:
    index = write_shards(tmp_path, state)
    read(index, state)
    shards = [tmp_path / f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    assert Source(VIT, index).files() == [index, *shards]
    message = refusal(shards[0])
    assert message.endswith("; it is one of several files: give the index beside it")
    shards[1].unlink()
    assert "names model-00002-of-00002.safetensors, which is not beside it" in refusal(index)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"weight_map": {"head.bias": "../w.safetensors"}}', "'../w.safetensors' is no file beside it"),
        ('{"weight_map": {"head.bias": "/etc/passwd"}}', "'/etc/passwd' is no file beside it"),
        ('{"weight_map": {"head.bias": 3}}', "3 is no file beside it"),
        ('{"weight_map": [1]}', "no index of weights (a JSON object with weight_map)"),
        ("[" * 100_000, "no index of weights"),
        ("", "no index of weights"),
    ],
)
def test_an_index_of_another_form(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "w.index.json").write_text(content)
    assert said in refusal(tmp_path / "w.index.json")


# What is no file of plain weights --------------------------------------------------------------------


class Custom:
    pass


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (np.float64(91.2), "multiarray.scalar"),
        (np.arange(3), "multiarray._reconstruct"),
        (Path("x"), "pathlib"),
        (Custom(), "test_checkpoints.Custom"),
    ],
)
def test_what_only_code_could_make(tmp_path: Path, state: State, more: Any, name: str) -> None:
    torch.save({"state_dict": state, "best": more}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert message.startswith("not readable as weights (it holds ")
    assert name in message
    assert message.endswith("save the state dict alone: torch.save(model.state_dict(), FILE))")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::UserWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert "a TorchScript archive; save its state dict" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\n<html>", "a web page"),
        (b'{"weight_map": {}}', "must be called NAME.index.json"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"GGUF\x03", "a GGUF file"),
        (b"\x1f\x8b\x08", "compressed by gzip; unpack it"),
        (b"no weights at all", "not readable as weights ("),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("w.onnx", "give `source: onnx:FILE`"), ("w.msgpack", "of Flax"), ("w.index", "of TensorFlow")],
)
def test_files_that_their_suffix_tells(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x01\x12 no weights")
    assert said in refusal(tmp_path / name)


def test_archives_of_something_else(tmp_path: Path, state: State) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    assert "it is NumPy arrays" in refusal(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.pt2", "w") as archive:
        archive.writestr("w/archive_format", "pt2")
    assert "an archive of torch.export" in refusal(tmp_path / "w.pt2")
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:3000])
    assert refusal(tmp_path / "cut.pth").startswith("not readable as weights (")
    assert refusal(tmp_path).startswith("is a folder; `checkpoint` names a file")


def test_weights_that_a_partition_left_empty(tmp_path: Path, state: State) -> None:
    torch.save({"module": {key: torch.zeros(0) for key in state}}, tmp_path / "w.pth")
    assert "as DeepSpeed's ZeRO 3 leaves them" in refusal(tmp_path / "w.pth")


def test_no_message_advises_to_load_unsafely() -> None:
    text = "Weights only load failed. Re-run with \x1b[1mweights_only=False\x1b[0m if you trust it"
    assert plain_text(RuntimeError(text)).startswith("it is no plain file of weights, or not whole; save")


def test_dictionaries_that_hold_each_other_many_times(tmp_path: Path) -> None:
    """Small on disk, and more ways through them than could ever be walked."""
    inner: dict[str, Any] = {"weight": torch.zeros(2)}
    for _ in range(5):
        inner = {f"k{i}": inner for i in range(200)}
    torch.save(inner, tmp_path / "w.pth")
    start = time.process_time()
    assert list(states_in(tmp_path / "w.pth")) == ["k0.k0.k0.k0.k0."]
    assert time.process_time() - start < 5
