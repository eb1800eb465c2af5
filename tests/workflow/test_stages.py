"""All stages one after another on a tiny model: what each leaves behind, and that it does so again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_stages import (
    MODEL_ARGS,
    ROOT,
    STAGES,
    files,
    outputs,
    process,
    run_stage,
    write_inputs,
    write_weights,
)

from ptq2themoon.data import Preprocessing
from ptq2themoon.graph.editing.onnx_run import run_onnx
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
from ptq2themoon.safety.sidecars import sha256, sidecar_path

QPARAMS = ("out/q/qparams.json", "out/q/qparams.safetensors")
METRICS = {
    "version", "protocol", "images", "top1", "top5", "loss", "agreement",
    "logits_nsr", "logits_sqnr_db", "output_cosine", "attention_cosine", "attention_kl",
}  # fmt: skip


# Parameters that the command line gives as files, or in another form.
NAMED_BY_FILE = {"recipe", "recipes", "base", "channelwise", "mode_images"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def manifest(chain: Path) -> pd.DataFrame:
    return pd.read_csv(chain / "out/evaluation.csv")


@pytest.fixture(scope="module")
def images(chain: Path, manifest: pd.DataFrame) -> torch.Tensor:
    """The evaluation images, uint8 [31, 1, 28, 28]."""
    return load_file(ROOT / "resources/demo/evaluation.safetensors")["images"][manifest["source"].tolist()]


@pytest.fixture(scope="module")
def preprocessing(chain: Path) -> Preprocessing:
    return Preprocessing.read(chain / "out/model.json")


# Every stage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_and_their_sidecar(chain: Path, stage: str) -> None:
    record = read(sidecar_path(chain / outputs(stage)[0]))
    jsonschema.validate(record, read(ROOT / "workflow/schemas/sidecar.schema.json"))
    assert record["stage"] == stage.partition(" ")[0]
    assert record["outputs"] == {path: sha256(chain / path) for path in outputs(stage)}
    assert record["inputs"] == {path: sha256(chain / path) for path in record["inputs"]}
    assert record["seed"] == (0 if stage == "list_evaluation" else STAGES[stage].get("seed"))
    options = {name.replace("-", "_"): value for name, value in STAGES[stage].items()}
    shared = options.keys() & record["parameters"].keys() - NAMED_BY_FILE
    assert {name: record["parameters"][name] for name in shared} == {name: options[name] for name in shared}


def test_nothing_else_is_left(chain: Path) -> None:
    named = {path for stage in STAGES for path in outputs(stage)}
    sidecars = {sidecar_path(Path(outputs(stage)[0])).as_posix() for stage in STAGES}
    assert {path for path in files(chain) if path.startswith("out/")} == named | sidecars


CODE = """
import sys
from pathlib import Path
import numpy, torch
import tiny_stages
from ptq2themoon.graph.fused_model import FusedModel
from ptq2themoon.quantize.simulation import load_model
folder, chain = map(Path, sys.argv[1:])
tiny_stages.write_inputs(folder)
for stage in tiny_stages.STAGES:
    ended = tiny_stages.run_stage(folder, stage)
    assert ended.status == 0, ended.err
qparams = [chain / f"out/q/qparams.{kind}" for kind in ("json", "safetensors")]
model = load_model(FusedModel.open(chain / "out"), "cpu", qparams)
numpy.save(folder / "logits.npy", model(torch.from_numpy(numpy.load(folder / "images.npy"))).numpy())
"""


@pytest.fixture(scope="module")
def again(
    chain: Path,
    images: torch.Tensor,
    preprocessing: Preprocessing,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same stages in a new folder and a new process, and logits from the first one's files."""
    folder = tmp_path_factory.mktemp("again")
    np.save(folder / "images.npy", preprocessing.normalise(images).numpy())
    ended = process("-c", CODE, folder, chain, cwd=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_again_to_the_byte(chain: Path, again: Path, stage: str) -> None:
    for path in outputs(stage):
        assert (again / path).read_bytes() == (chain / path).read_bytes(), path
    sidecar = sidecar_path(Path(outputs(stage)[0]))
    assert {**read(again / sidecar), "wall_time_s": 0} == {**read(chain / sidecar), "wall_time_s": 0}


def test_a_new_process_has_the_same_logits_to_the_bit(
    chain: Path, again: Path, images: torch.Tensor, preprocessing: Preprocessing
) -> None:
    model = load_model(FusedModel.open(chain / "out"), "cpu", [chain / path for path in QPARAMS])
    logits = model(preprocessing.normalise(images)).numpy()
    assert np.load(again / "logits.npy").tobytes() == logits.tobytes()


@pytest.mark.parametrize(
    ("stage", "changes"), [("draw_calibration", {"seed": 4}), ("export", {"source": "local-dir:other"})]
)
def test_another_seed_is_another_result(copy: Path, stage: str, changes: dict[str, Any]) -> None:
    write_weights(copy / "other", seed=1)
    before = (copy / outputs(stage)[0]).read_bytes()
    assert run_stage(copy, stage, **changes).status == 0
    assert (copy / outputs(stage)[0]).read_bytes() != before


# One by one ------------------------------------------------------------------------------------------


def test_export(chain: Path) -> None:
    info = read(chain / "out/model.json")
    assert info["max_abs_logit_difference"] <= 1e-4
    assert info["input_size"] == [1, 28, 28]
    assert (info["num_classes"], info["opset"]) == (10, 13)
    assert info["source"] == "local-dir:weights"
    assert info["preprocessing"] == {
        "input_size": [1, 28, 28], "interpolation": "bicubic", "mean": [0.286], "std": [0.353],
        "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip
    weights = load_file(chain / "weights/model.safetensors")
    assert info["parameters"] == sum(tensor.numel() for tensor in weights.values())
    onnx.checker.check_model(chain / "out/model.onnx", full_check=True)


def test_calibration_images_are_of_every_class(chain: Path) -> None:
    drawn = load_file(chain / "out/calibration.safetensors")
    assert drawn["images"].shape == (24, 1, 28, 28)
    assert sorted(drawn["labels"].bincount(minlength=10).tolist()) == [2] * 6 + [3] * 4
    source = load_file(ROOT / "resources/demo/calibration.safetensors")
    assert torch.equal(drawn["images"], source["images"][drawn["index"]])


def test_fuse(chain: Path) -> None:
    report = read(chain / "out/fusion.json")
    assert report["fused"] == {"LayerNorm": 5, "GELU": 2, "MatMul+Add": 8}
    assert (report["images"], report["unassigned"]) == (5, [])
    assert report["max_abs_logit_difference"] <= 1e-4
    heads, attention = MODEL_ARGS["num_heads"], report["attention"]
    same = {"heads": heads, "tokens": 50, "groups": 1, "prefix_tokens": 1, "grid": [7, 7], "stage": 0}
    assert attention["blocks"] == [{"softmax": f"blocks.{block}.softmax", **same} for block in range(2)]
    assert attention["class_token"] is True
    assert attention["note"] == "the class token is the one token before the patches, which the output reads"
    model = onnx.load(chain / "out/fused.onnx")
    assert [o["name"] for o in report["operators"]] == [node.name for node in model.graph.node]
    assert sum(report["counts"]["after"].values()) == len(model.graph.node)


def test_calibrate(chain: Path) -> None:
    qparams = read(chain / "out/q/qparams.json")
    assert (qparams["recipe"], qparams["bits"], qparams["calibration_images"]) == ("layernorm", "w8a8", 24)
    assert qparams["graph_sha256"] == sha256(chain / "out/fused.onnx")
    per_channel = {
        operator["role"]
        for operator in qparams["operators"]
        for tensor in operator["tensors"]
        if tensor["granularity"] == "per-channel"
    }
    assert per_channel == {"norm1", "norm2", "norm", "residual1", "residual2"}


@pytest.mark.parametrize("at", ["fp32", "q"])
def test_metrics_lie_in_their_ranges(chain: Path, at: str) -> None:
    metrics = read(chain / "out" / at / "metrics.json")
    assert metrics.keys() == METRICS
    assert metrics["images"] == 31
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100
    assert 0 <= metrics["agreement"] <= 100
    assert metrics["loss"] > 0
    if at == "fp32":
        assert metrics["agreement"] == 100
        assert all(metrics[name] is None for name in METRICS if name.startswith(("logits", "output", "att")))
    else:
        assert metrics["logits_sqnr_db"] == pytest.approx(-10 * np.log10(metrics["logits_nsr"]))
        assert 10 < metrics["logits_sqnr_db"] < 60
        assert 0.95 < metrics["output_cosine"] < 1
        assert 0.9 < metrics["attention_cosine"] < 1
        assert 0 < metrics["attention_kl"] < 0.1


def test_without_labels_the_output_is_compared(copy: Path) -> None:
    """And what needs no labels is what it was."""
    manifest = pd.read_csv(copy / "out/evaluation.csv").assign(label=-1)
    manifest.to_csv(copy / "out/evaluation.csv", index=False)
    before = read(copy / "out/q/metrics.json")
    for stage in ("reference", "evaluate", "attention_maps fp32", "attention_maps", "summarize"):
        assert run_stage(copy, stage).status == 0
    no_accuracy = dict.fromkeys(("top1", "top5", "loss"))
    assert read(copy / "out/q/metrics.json") == {**before, **no_accuracy}
    assert read(copy / "out/fp32/metrics.json") == {
        **dict.fromkeys(METRICS), "version": 1, "images": 31, "agreement": 100
    }  # fmt: skip
    table = pd.read_csv(copy / "out/summary.csv")
    assert table[[*no_accuracy, "top1_drop"]].isna().all(axis=None)
    for stage in ("plot_top1", "plot_attention"):
        assert run_stage(copy, stage).status == 0


def test_labels_for_some_images_only_are_refused(copy: Path) -> None:
    path = copy / "out/evaluation.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].partition(",")[0] + ",-1", ""]))
    ended = run_stage(copy, "reference")
    assert ended.err == (
        "error: out/evaluation.csv: 1 of 31 images have no label; give all of them one, or none\n"
    )


def test_features_without_class_token_pass_every_stage(tmp_path: Path) -> None:
    """No classifier, no pool, no class token: [B, 49, 32] out."""
    folder = write_inputs(tmp_path / "features")
    shutil.rmtree(folder / "weights")
    write_weights(folder / "weights", num_classes=0, class_token=False, global_pool="")
    for stage in STAGES:
        ended = run_stage(folder, stage)
        assert ended.status == 0, f"{stage}: {ended.err}"
    assert read(folder / "out/model.json")["output"] == "features"
    metrics = read(folder / "out/q/metrics.json")
    assert metrics["top1"] is None
    assert metrics["logits_sqnr_db"] > 5
    assert metrics["output_cosine"] > 0.8
    assert set(pd.read_csv(folder / "out/q/attention.csv")["query"]) == {"mean of tokens"}
    with safe_open(folder / "out/q/attention_maps.safetensors", framework="numpy") as file:
        assert file.metadata()["query"] == "mean of tokens"
        assert file.metadata()["note"].startswith("no class token")


def test_floating_point_is_onnx_runtime_recounted(
    chain: Path, manifest: pd.DataFrame, images: torch.Tensor, preprocessing: Preprocessing
) -> None:
    """Of the exported model, before any fusion."""
    logits = torch.from_numpy(run_onnx(chain / "out/model.onnx", preprocessing.normalise(images).numpy()))
    labels = torch.tensor(manifest["label"].tolist())
    ranks = (logits.argsort(1, descending=True) == labels[:, None]).int().argmax(1)
    metrics = read(chain / "out/fp32/metrics.json")
    assert metrics["top1"] == pytest.approx(100 * float((ranks < 1).float().mean()))
    assert metrics["top5"] == pytest.approx(100 * float((ranks < 5).float().mean()))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("stage", [name for name, options in STAGES.items() if options.get("model") == "out"])
def test_the_fused_graph_is_parsed_once(copy: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = onnx.load, []

    def counted(path: Path, *args: Any, **options: Any) -> onnx.ModelProto:
        loaded.append(Path(path).name)
        return load(path, *args, **options)

    monkeypatch.setattr(onnx, "load", counted)
    ended = run_stage(copy, stage)
    assert ended.status == 0, ended.err
    assert loaded.count("fused.onnx") == 1


@pytest.mark.parametrize("size", [1, 31, 100])
def test_the_size_of_batches_changes_nothing(copy: Path, size: int) -> None:
    before, rows = read(copy / "out/q/metrics.json"), pd.read_csv(copy / "out/q/attention.csv")
    assert run_stage(copy, "evaluate", batch_size=size).status == 0
    now = read(copy / "out/q/metrics.json")
    assert now.pop("protocol") == before.pop("protocol")
    assert now == pytest.approx(before, rel=1e-2)
    after = pd.read_csv(copy / "out/q/attention.csv")
    pd.testing.assert_frame_equal(after, rows, rtol=1e-2)


def test_attention_has_a_row_an_image(chain: Path, manifest: pd.DataFrame) -> None:
    table = pd.read_csv(chain / "out/q/attention.csv")
    assert list(table.columns) == ["image", "label", "query", "cosine", "kl"]
    assert set(table["query"]) == {"class token"}
    assert table["image"].tolist() == list(range(31))
    assert table["label"].tolist() == manifest["label"].tolist()
    metrics = read(chain / "out/q/metrics.json")
    assert table["cosine"].mean() == pytest.approx(metrics["attention_cosine"])
    assert table["kl"].mean() == pytest.approx(metrics["attention_kl"])


def test_operator_errors(chain: Path) -> None:
    table = pd.read_csv(chain / "out/q/operators.csv")
    assert list(table.columns) == [
        "operator", "type", "role", "block", "mode",
        "nsr", "sqnr_db", "relative_error", "mse", "mae", "cosine",
    ]  # fmt: skip
    quantized = [operator["name"] for operator in read(chain / "out/q/qparams.json")["operators"]]
    assert list(table["mode"].unique()) == ["accumulated", "local", "logits"]
    for _, rows in table.groupby("mode"):
        assert rows["operator"].tolist() == quantized
    figures = table[["nsr", "relative_error", "mse", "mae", "cosine"]]
    assert np.isfinite(figures).all(axis=None)
    assert (figures >= 0).all(axis=None)
    assert (table["cosine"] <= 1 + 1e-6).all()
    ranking = read(chain / "out/q/ranking.json")
    assert ranking.keys() >= {"images", "images_a_half", "operators", "spearman", "top", "top_shared"}
    assert (ranking["images"], ranking["operators"]) == (6, len(quantized))
    assert -1 <= ranking["spearman"] <= 1


@pytest.mark.parametrize(("at", "recipe"), [("fp32", "fp32"), ("q", "layernorm")])
def test_attention_maps(
    chain: Path, manifest: pd.DataFrame, images: torch.Tensor, at: str, recipe: str
) -> None:
    path = chain / "out" / at / "attention_maps.safetensors"
    maps = load_file(path)
    first_of_class = manifest.reset_index().groupby("label")["index"].first()
    chosen = first_of_class.sort_index().iloc[[0, 3, 6]].tolist()  # three of ten classes, over all of them
    assert torch.equal(maps["images"], images[chosen])
    assert maps["attention"].shape == (3, MODEL_ARGS["num_heads"], 49)
    assert (maps["attention"] >= 0).all()
    assert (maps["attention"].sum(-1) <= 1.01).all()
    labels = ",".join(str(manifest["label"][row]) for row in chosen)
    note = read(chain / "out/fusion.json")["attention"]["note"]
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "grid": "7x7", "groups": "1", "block": "1", "recipe": recipe, "labels": labels,
            "query": "class token", "note": note,
        }  # fmt: skip


def test_summary(chain: Path) -> None:
    table = pd.read_csv(chain / "out/summary.csv")
    assert list(table.columns) == [
        "model", "recipe", "protocol", "bits", "calibration_images", "seed", "images", "top1",
        "top1_drop", "faithful_top1", "fast_top1", "top5", "loss", "agreement", "logits_sqnr_db",
        "output_cosine", "attention_cosine", "attention_kl", "faithful_agreement", "fast_agreement",
    ]  # fmt: skip
    assert table["recipe"].tolist() == ["fp32", "layernorm"]
    full, quantized = (read(chain / "out" / at / "metrics.json") for at in ("fp32", "q"))
    assert table["top1"].tolist() == pytest.approx([full["top1"], quantized["top1"]])
    assert table["top1_drop"].tolist() == pytest.approx([0, full["top1"] - quantized["top1"]])


def test_figures_are_whole_pictures(chain: Path) -> None:
    figures = sorted((chain / "out/figures").glob("*.[ps][nv]g"))
    assert len(figures) == 8
    for path in figures:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            assert content.rstrip().endswith(b"IEND\xaeB`\x82")
        else:
            assert content.rstrip().endswith(b"</svg>")


# Shards ----------------------------------------------------------------------------------------------

GATHERED = {"reference": "reference_part", "evaluate": "evaluate_part", "verify_runtime": "runtime_part"}


def in_shards(folder: Path, stage: str, shards: int) -> list[str]:
    """Run the part of every shard; their files."""
    names = [f"out/parts/{stage}-{number}-of-{shards}.safetensors" for number in range(1, shards + 1)]
    for number, name in enumerate(names, start=1):
        ended = run_stage(folder, GATHERED[stage], shard=f"{number}-of-{shards}", out=name)
        assert ended.status == 0, ended.err
    return names


@pytest.mark.parametrize(
    ("stage", "shards"),
    [("evaluate", 1), ("evaluate", 3), ("evaluate", 8), ("reference", 3), ("verify_runtime", 3)],
)
def test_shards_gathered_are_one_pass_to_the_byte(chain: Path, copy: Path, stage: str, shards: int) -> None:
    """31 images in batches of 8 are four: of eight shards half are empty."""
    for path in outputs(stage):
        (copy / path).unlink()
    ended = run_stage(copy, stage, parts=in_shards(copy, stage, shards))
    assert ended.status == 0, ended.err
    for path in outputs(stage):
        assert (copy / path).read_bytes() == (chain / path).read_bytes(), path
    sidecar = sidecar_path(Path(outputs(stage)[0]))
    assert {**read(copy / sidecar), "wall_time_s": 0} == {**read(chain / sidecar), "wall_time_s": 0}


def test_parts_of_other_shards_images_or_models_are_refused(copy: Path) -> None:
    names = in_shards(copy, "evaluate", 2)
    before = {path: (copy / path).read_bytes() for path in outputs("evaluate")}
    cut = copy / "out/parts/cut.safetensors"
    cut.write_bytes((copy / names[0]).read_bytes()[:-9])
    for changes, said in (
        ({"parts": names[::-1]}, "2-of-2.safetensors: was made for another shard than is given; run the"),
        ({"parts": names[:1]}, "1-of-2.safetensors: was made for another shard"),
        ({"parts": names, "batch_size": 4}, "was made for another batch_size"),
        ({"parts": names, "qparams": STAGES["calibrate per channel"]["out"]}, "qparams"),
        ({"parts": [cut.relative_to(copy).as_posix(), names[1]]}, "holds no shard"),
        ({"parts": ["out/parts/none.safetensors"]}, "out/parts/none.safetensors: holds no shard"),
    ):
        ended = run_stage(copy, "evaluate", **changes)
        assert (ended.status, "Traceback" in ended.err) == (2, False)
        assert said in ended.err
    assert {path: (copy / path).read_bytes() for path in before} == before


@pytest.mark.parametrize("shard", ["0-of-2", "3-of-2", "2", "of", "1-of-x"])
def test_a_shard_that_is_none_is_refused(copy: Path, shard: str) -> None:
    ended = run_stage(copy, "reference_part", shard=shard, out="out/none.safetensors")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"--shard {shard}: must read as 2-of-3 does" in ended.err
